"""The records of a run: one JSON object per line of ``metrics.jsonl``, and its trackers."""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any

from stem_torchrec.config import Config
from stem_torchrec.config.keys import by_key
from stem_torchrec.errors import EnvironmentFailure, UserError
from stem_torchrec.runs.trackers.tracker import End, Tracked
from stem_torchrec.runs.trackers.trackers import Trackers
from stem_torchrec.storage.growing_folder import GrowingFolder
from stem_torchrec.storage.place import Place

METRICS = "metrics.jsonl"

Record = dict[str, Any]
Listener = Callable[[Record], None]

_log = logging.getLogger(__name__)


class Recorder:
    """Appends records to ``metrics.jsonl`` and trackers; on ranks but the first, nothing.

    What a disk has no room for waits for the next record or checkpoint; TensorBoard leaves it out.

    Args:
        step: finished steps; of later ones an earlier process may have written.
        config: of the run, with its trackers; TensorBoard alone if None.

    Attributes:
        complete: whether the run is; else it may go on.
        failure: why not all records are where they should be, once it is left; or None.
    """

    def __init__(
        self, run_dir: Place, *, active: bool, step: int = 0, config: Config | None = None
    ) -> None:
        self.complete = True
        self.failure: Exception | None = None
        self._growing = GrowingFolder(run_dir, [METRICS]) if active else None
        if self._growing is None:
            return
        self._path = self._growing.here / METRICS
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        self._lock = Lock()  # checkpoints ask for an upload from their thread
        settings = {} if config is None else by_key(config)
        names = ("tensorboard",) if config is None else config.run.trackers
        self._trackers = Trackers(names, Tracked(run_dir, self._growing.here, step, settings))

    def write(self, record: Mapping[str, Any]) -> None:
        if self._growing is None:
            return
        try:
            self._append((json.dumps(record) + "\n").encode())
        except OSError as error:
            _log.warning("records are not written yet: %s", error)
        self._notice_removal()
        self._trackers.add(record)
        self._growing.upload_now_and_then()

    def upload(self) -> None:
        """Bring all records so far to where the run is.

        Raises:
            OSError, UserError: they cannot be written there, on a disk or in a store.
        """
        if self._growing is not None:
            self._append(b"")
            self._trackers.flush()
            self._growing.upload()

    def _notice_removal(self) -> None:
        """Say once that the file is not the one that was opened: what is written reaches nobody."""
        if self.failure is not None:
            return
        try:
            there = os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except (FileNotFoundError, NotADirectoryError):
            there = False
        except OSError:  # nothing is known, and writing says more
            return
        if not there:
            self.failure = EnvironmentFailure(
                f"{self._path} was deleted or replaced while the run went on: its records are lost"
            )
            _log.warning("%s", self.failure)

    def _append(self, line: bytes) -> None:
        with self._lock:
            self._waiting += line
            while self._waiting:  # a disk may have room for a part
                self._waiting = self._waiting[self._file.write(self._waiting) :]

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._growing is None:
            return
        self._notice_removal()
        try:
            self._append(b"")
        except OSError as reason:
            self.failure = self.failure or EnvironmentFailure(
                f"{self._path}: {reason.strerror}: the last records are lost"
            )
        self._file.close()
        ended: End = "complete" if self.complete else "stopped"
        self._trackers.close("failed" if error is not None else ended)
        try:
            self._growing.close(failed=error is not None)
        except UserError as reason:
            self.failure = reason


def last_test(records: Sequence[Record]) -> Record | None:
    """The newest evaluation of the test split."""
    found = [r for r in records if r["kind"] == "eval" and r.get("split") == "test"]
    return found[-1] if found else None


def defined(figures: Any) -> Any:
    """Figures, nested by name, with None for NaN and infinity: JSON has neither."""
    if isinstance(figures, Mapping):
        return {name: defined(value) for name, value in figures.items()}
    return None if isinstance(figures, float) and not math.isfinite(figures) else figures


def has_evaluation(run_dir: Place, split: str, step: int) -> bool:
    """Whether the run's records have an evaluation of the split at this step."""
    found = ((r["kind"], r.get("split"), r["step"]) for r in read_records(run_dir))
    return ("eval", split, step) in found


def read_records(run_dir: Place) -> list[Record]:
    """The records of a run; a line that an interruption or a disk has damaged is none."""
    return [record for line in record_lines(run_dir) if (record := parse_record(line)) is not None]


def record_lines(run_dir: Place) -> list[str]:
    """The lines of ``metrics.jsonl`` with their ends, as they are; empty without the file."""
    file = run_dir / METRICS
    text = file.read_bytes().decode(errors="replace") if file.exists() else ""
    return [f"{line}\n" for line in text.split("\n")[:-1]]


def parse_record(line: str) -> Record | None:
    """The record of a line, which has a kind and a step; None for any other line."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    return record if type(record.get("step")) is int else None
