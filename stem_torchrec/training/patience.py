"""When a run has learned what it can: its figure of the valid split no longer improves."""

from collections.abc import Iterable
from typing import NamedTuple

from stem_torchrec.checkpoint import metric_value
from stem_torchrec.config import Config, metric_direction
from stem_torchrec.runs.records import Record


class Patience:
    """Counts the evaluations since the best one, on every rank alike.

    All it knows comes from the run's records, so a run that goes on counts on.

    Attributes:
        metric: by which evaluations are judged.
    """

    def __init__(self, config: Config) -> None:
        self.metric = config.metric
        self._limit = config.eval.patience
        self._min_delta = config.eval.min_delta
        self._best: _Best | None = None
        self._waited = 0

    @property
    def is_over(self) -> bool:
        """Whether ``eval.patience`` evaluations in a row were no better than one before them."""
        return self._limit is not None and self._waited >= self._limit

    def start(self, records: Iterable[Record]) -> None:
        """Judge what the run has recorded so far, from the first on."""
        self._best, self._waited = None, 0
        for record in records:
            self.judge(record)

    def judge(self, record: Record) -> None:
        """Take an evaluation of the valid split into account; no other record counts."""
        if record["kind"] != "eval" or record["split"] != "valid":
            return
        value = metric_value(record, self.metric)
        sign = metric_direction(self.metric)
        best = self._best
        if value is not None and (
            best is None or sign * value > sign * best.value + self._min_delta
        ):
            self._best, self._waited = _Best(value, record["step"]), 0
        else:
            self._waited += 1

    def record(self, step: int) -> Record:
        """Why the run ends after ``step``."""
        value, best_step = self._best or (None, None)
        return {
            "kind": "stop",
            "step": step,
            "metric": self.metric,
            "best": value,
            "best_step": best_step,
            "evaluations": self._waited,
        }


class _Best(NamedTuple):
    value: float
    step: int
