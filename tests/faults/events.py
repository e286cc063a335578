"""What the workers of a watched job write down, and what it says of a killed one."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PHASES = ("start", "training", "save", "evaluation", "end")


class Event(NamedTuple):
    """One line of a rank's log.

    Attributes:
        what: the begin of a phase (``start``, ``training``, ``save``, ``evaluation``, ``end``); of
            a write in the background and its end (``write``, ``written``); a finished ``step``; or
            ``done``, the last event of a rank that has ended its work.
        rows: checksum of the batch of a finished step.
    """

    process: int
    what: str
    step: int
    rows: int


class Log:
    """Appends a process's events to its rank's file, from any thread."""

    def __init__(self, folder: Path, rank: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(_file_of(folder, rank), flags, 0o644)

    def write(self, what: str, step: int = 0, rows: int = 0) -> None:
        # One write to the system: a kill leaves the whole line or nothing.
        os.write(self._file, f"{os.getpid()} {what} {step} {rows}\n".encode())


def events(folder: Path, rank: int) -> list[Event]:
    """What a rank has done, in all its lives."""
    file = _file_of(folder, rank)
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    words = [line.split() for line in lines if line.endswith("\n")]
    return [Event(int(w[0]), w[1], int(w[2]), int(w[3])) for w in words]


def phase_of(life: Sequence[Event]) -> str:
    """What a process was at after its last event.

    ``save`` is the part of a save that training waits for; ``, writing`` follows another phase
    while the checkpoint before is still on its way to the disk.
    """
    phase, writing = "start", False
    for event in life:
        if event.what in PHASES:
            phase = event.what
        elif event.what == "step":
            phase = "training"
        elif event.what in ("write", "written"):
            writing = event.what == "write"
    return f"{phase}, writing" if writing else phase


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}"
