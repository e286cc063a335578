"""One training in a process of its own: the ``train`` command, its log, and its end."""

import abc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

from stem_torchrec.config import Config
from stem_torchrec.runs.records import read_records
from stem_torchrec.stopping.signals import stop_signals

Start = Literal["resume", "overwrite"]
Watch = Callable[[str, Callable[[], float]], AbstractContextManager[None]]
"""Shows a bar over a block: its name, and what gives its share, 0 to 100, from another thread."""

_ENDING_S = 30


def unwatched(name: str, done: Callable[[], float]) -> AbstractContextManager[None]:
    """Nobody watches."""
    return nullcontext()


class Ranks(NamedTuple):
    """How trainings are started: ranks of each, trainings at a time."""

    nproc: int
    parallel: int


class Training(abc.ABC):
    """One ``train`` command, on a disk.

    Attributes:
        config: what it comes to.
        overrides: ``--section.key=value`` each, the run's folder among them.
    """

    config: Config
    overrides: Sequence[str]

    @property
    def dir(self) -> Path:
        """The run's folder."""
        assert isinstance(self.config.run.dir, Path)
        return self.config.run.dir

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.dir.with_name(f"{self.dir.name}.log")


def start_training(
    training: Training,
    start: Start,
    config: Path,
    ranks: Ranks,
    command: Sequence[str] = ("train",),
) -> "subprocess.Popen[bytes]":
    """Start the command; its log goes on where the run does."""
    words = [sys.executable, "-m", "stem_torchrec", *command, "--config", str(config)]
    words += [*training.overrides, "--nproc", str(ranks.nproc), f"--{start}"]
    training.dir.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if ranks.parallel > 1:
        share = (os.cpu_count() or 1) // (ranks.parallel * ranks.nproc)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, share)))
    with training.log.open("ab" if start == "resume" else "wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment)


def failure_of(training: Training, code: int) -> str | None:
    """What the exit code and the log's last line tell of a failure; None if it ended well."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    if code == 0:
        return None
    lines = training.log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {code}"


def share_done(run_dir: Path) -> float:
    """How much of its steps a run has done by its last train record, 0 to 1."""
    steps = [r for r in read_records(run_dir) if r["kind"] == "train" and r.get("total_steps")]
    return steps[-1]["step"] / steps[-1]["total_steps"] if steps else 0.0


def end_trainings(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask them to save and end; kill what takes too long."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """SIGTERM and SIGHUP; Python does so with Ctrl-C."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handled = set(stop_signals()) - {signal.SIGINT}
    before = {name: signal.signal(name, leave) for name in handled}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
