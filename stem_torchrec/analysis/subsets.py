"""Who gains from training tasks together: samples by what one task's feedback says of the other's.

The analysis of STEM (Su et al., AAAI 2024, "Negative Transfer in Multi-Task Recommendation"): a
user may give much feedback on one task where she gives little on another. Models that share all
tables lose on such samples against single-task models, even where they gain on the rest.

n samples of a split, two tasks A and B in this order, K buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.errors import UserError
from stem_torchrec.training.evaluation import Joined, evaluation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL, OVERWHELMING_A, COMPARABLE, OVERWHELMING_B = "all", "A", "comparable", "B"
SUBSETS = (OVERWHELMING_A, COMPARABLE, OVERWHELMING_B)
"""Samples where A's expected feedback is far above B's, near it, far below it."""


class Score(NamedTuple):
    """Of one task on one subset; None where the labels do not define it.

    Attributes:
        logloss: nats.
    """

    auc: float | None
    logloss: float | None


class Size(NamedTuple):
    """Samples of a subset, labelled or not; of each task the share of positives among labelled."""

    samples: int
    share: float
    positive_rates: tuple[float | None, ...]


Scores = dict[tuple[str, str], Score]
"""(task, ``all`` or a subset) -> score."""


@dataclass(frozen=True)
class Buckets:
    """How samples are told apart.

    Attributes:
        count: K.
        comparable: largest distance of the two tasks' buckets that counts as near.

    Raises:
        UserError: fewer than 2 buckets, or a distance that leaves a subset empty by definition.
    """

    count: int = 10
    comparable: int = 3

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UserError(f"--buckets: {self.count}; allowed: 2 and more")
        if not 0 <= self.comparable <= self.count - 2:
            raise UserError(
                f"--comparable: {self.comparable}; allowed with {self.count} buckets, whose "
                f"distance is at most {self.count - 1}: 0 to {self.count - 2}"
            )


def buckets_of(scores: Floats, count: int) -> Ints:
    """Equal-frequency bucket, 0 to K - 1, of each score (n,); sizes differ by one at most.

    Ties are parted in the order of the samples.
    """
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(scores, kind="stable")] = np.arange(len(scores))
    return ranks * count // max(len(scores), 1)


def subsets_of(expected: Floats, buckets: Buckets) -> Ints:
    """Index into ``SUBSETS`` of each sample, by the difference d of its buckets for A and B.

    d > c is A-overwhelming, |d| <= c comparable, d < -c B-overwhelming, c = ``comparable``.

    Args:
        expected: (n, 2) expected feedback on A and B, in any unit that grows with it.
    """
    of_a, of_b = (buckets_of(column, buckets.count) for column in expected.T)
    difference = of_a - of_b
    return np.where(difference > buckets.comparable, 0, 1) + (difference < -buckets.comparable)


def sizes_of(samples: Joined, subsets: Ints) -> dict[str, Size]:
    """Size of all samples and of each subset; ``samples`` has the columns A and B."""
    sizes = {}
    for name, own in _masks(subsets).items():
        weights = samples.weights[own]
        total, positive = weights.sum(axis=0), (weights * samples.labels[own]).sum(axis=0)
        rates = tuple(float(p / t) if t > 0 else None for p, t in zip(positive, total, strict=True))
        sizes[name] = Size(int(own.sum()), float(own.mean()), rates)
    return sizes


def scores_of(tasks: Sequence[str], samples: Joined, subsets: Ints) -> Scores:
    """AUC and log loss of each task on all samples and on each subset.

    A sample counts for a task where that task's label was observed.
    """
    scores = {}
    for name, own in _masks(subsets).items():
        part = Joined(samples.logits[own], samples.labels[own], samples.weights[own], None)
        figures = evaluation(tasks, part)
        for task in tasks:
            scores[task, name] = Score(figures["auc"][task], figures["logloss"][task])
    return scores


def gains(run: Scores, single: Scores) -> Scores:
    """What a run is better by than single-task: AUC above it, log loss below it."""
    return {
        key: Score(
            _difference(score.auc, single[key].auc),
            _difference(single[key].logloss, score.logloss),
        )
        for key, score in run.items()
    }


def title(subset: str, tasks: Sequence[str]) -> str:
    """A subset's name for people."""
    overwhelming = {OVERWHELMING_A: tasks[0], OVERWHELMING_B: tasks[1]}
    return f"{overwhelming[subset]}-overwhelming" if subset in overwhelming else subset


def _masks(subsets: Ints) -> dict[str, NDArray[np.bool_]]:
    everyone = {ALL: np.ones(len(subsets), dtype=np.bool_)}
    return everyone | {name: subsets == index for index, name in enumerate(SUBSETS)}


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
