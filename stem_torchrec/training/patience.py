"""Whether a run still learns: its figure of the valid split improves, or no longer does."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from stem_torchrec.checkpoint import metric_value
from stem_torchrec.config import Config, metric_direction
from stem_torchrec.runs.records import Record


class Improvement:
    """The best evaluation of the valid split so far, on every rank alike.

    Attributes:
        metric: by which evaluations are judged.
        best: the best one, or None where none has had a value.
        waited: evaluations since then.
    """

    def __init__(self, config: Config) -> None:
        self.metric = config.metric
        self._min_delta = config.eval.min_delta
        self.forget()

    def forget(self) -> None:
        self.best: _Best | None = None
        self.waited = 0

    def judge(self, record: Record) -> None:
        """Take an evaluation of the valid split into account; no other record counts."""
        if not _is_of_valid(record):
            return
        value = metric_value(record, self.metric)
        sign = metric_direction(self.metric)
        best = self.best
        if value is not None and (
            best is None or sign * value > sign * best.value + self._min_delta
        ):
            self.best, self.waited = _Best(value, record["step"]), 0
        else:
            self.waited += 1


class _Best(NamedTuple):
    value: float
    step: int


def _is_of_valid(record: Record) -> bool:
    return record["kind"] == "eval" and record["split"] == "valid"


class Patience:
    """Counts the evaluations since the best one, and says when there are too many.

    All it knows comes from the run's records, so a run that goes on counts on.
    """

    def __init__(self, config: Config) -> None:
        self._limit = config.eval.patience
        self._improvement = Improvement(config)

    @property
    def is_over(self) -> bool:
        """Whether ``eval.patience`` evaluations in a row were no better than one before them."""
        return self._limit is not None and self._improvement.waited >= self._limit

    def start(self, records: Iterable[Record]) -> None:
        """Judge what the run has recorded so far, from the first on."""
        self._improvement.forget()
        for record in records:
            self.judge(record)

    def judge(self, record: Record) -> None:
        """As ``Improvement.judge``."""
        self._improvement.judge(record)

    def record(self, step: int) -> Record:
        """Why the run ends after ``step``."""
        value, best_step = self._improvement.best or (None, None)
        return {
            "kind": "stop",
            "step": step,
            "metric": self._improvement.metric,
            "best": value,
            "best_step": best_step,
            "evaluations": self._improvement.waited,
        }


class Plateau:
    """``optim.decay: plateau``: the learning rates drop where evaluations stop improving.

    Every rank judges the same records, and a checkpoint holds what it has come to.

    Attributes:
        factor: share of the peak learning rates now; 1 with any other decay.
    """

    def __init__(self, config: Config) -> None:
        self._optim = config.optim
        self._improvement = Improvement(config)
        self._judged_step = 0
        self.factor = 1.0

    def judge(self, record: Record) -> None:
        """As ``Improvement.judge``; after ``plateau_patience`` in vain the factor drops.

        An evaluation counts once: one whose record was lost is made again.
        """
        is_new = _is_of_valid(record) and record["step"] > self._judged_step
        if self._optim.decay != "plateau" or not is_new:
            return
        self._judged_step = record["step"]
        self._improvement.judge(record)
        if self._improvement.waited >= self._optim.plateau_patience:
            lower = self.factor * self._optim.plateau_factor
            self.factor = max(lower, self._optim.final_lr_ratio)
            self._improvement.waited = 0

    def state_dict(self) -> dict[str, Any]:
        found = self._improvement
        best = None if found.best is None else list(found.best)
        return {
            "factor": self.factor,
            "waited": found.waited,
            "best": best,
            "judged_step": self._judged_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor = float(state["factor"])
        self._judged_step = int(state["judged_step"])
        self._improvement.waited = int(state["waited"])
        best = state["best"]
        self._improvement.best = None if best is None else _Best(float(best[0]), int(best[1]))

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        self.load_state_dict(states[0])
