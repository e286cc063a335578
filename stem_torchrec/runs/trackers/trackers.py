"""All trackers of a run: none of them can end it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from stem_torchrec.errors import UserError, without_passwords
from stem_torchrec.runs.trackers.mlflow import Mlflow
from stem_torchrec.runs.trackers.tensorboard import TensorBoard
from stem_torchrec.runs.trackers.tracker import End, Tracked, Tracker

_KINDS: Mapping[str, Callable[[Tracked], Tracker]] = {"tensorboard": TensorBoard, "mlflow": Mlflow}

_log = logging.getLogger(__name__)


class Trackers:
    """Calls each tracker; one that fails is left out from then on, with one warning."""

    def __init__(self, names: Sequence[str], run: Tracked) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            self._guarded(name, partial(self._open, name, run))

    def add(self, record: Mapping[str, Any]) -> None:
        self._each(lambda tracker: tracker.add(record))

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self, end: End) -> None:
        self._each(lambda tracker: tracker.close(end))

    def _open(self, name: str, run: Tracked) -> None:
        self._trackers[name] = _KINDS[name](run)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            self._guarded(name, partial(call, tracker))

    def _guarded(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of another package, which the run does not depend on
            self._trackers.pop(name, None)
            why = without_passwords(str(error).partition("\n")[0]) or type(error).__name__
            _log.warning("%s gets no more records of this run: %s", name, why)


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if what one of these trackers needs is not installed."""
    if "mlflow" in names and find_spec("mlflow") is None:
        raise UserError(
            "run.trackers: mlflow is not installed; pip install 'stem-torchrec[mlflow]' does that"
        )
