"""TensorBoard's files in the run's folder."""

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from stem_torchrec.runs.trackers.tracker import End, Tracked, Tracker, group_of, scalars

_log = logging.getLogger(__name__)


class TensorBoard(Tracker):
    """Files in ``tb/``; goes on in another file where one could not be written.

    Of steps that an earlier process has written too, it shows this one's.
    """

    def __init__(self, run: Tracked) -> None:
        self._folder = run.here / "tb"
        self._writer: SummaryWriter | None = None
        self._before, threading.excepthook = threading.excepthook, self._thread_ended
        purge_step = run.step + 1 if run.step else None
        with self._or_leave_out():
            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    def add(self, record: Mapping[str, Any]) -> None:
        with self._or_leave_out():
            self._writer = self._writer or SummaryWriter(str(self._folder))
            for name, value in scalars(record):
                self._writer.add_scalar(f"{group_of(record)}/{name}", value, record["step"])

    def flush(self) -> None:
        with self._or_leave_out():
            if self._writer is not None:
                self._writer.flush()

    def close(self, end: End) -> None:
        with self._or_leave_out():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._before

    @contextmanager
    def _or_leave_out(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _log.warning("TensorBoard's records are left out: %s", error)
            self._writer = None

    def _thread_ended(self, ended: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread raises a disk's error to nobody; its next call raises it again."""
        if not isinstance(ended.exc_value, OSError):
            self._before(ended)
