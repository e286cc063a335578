"""Exact area under the ROC curve, with ties and weights, overall and per group.

n samples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Numbers = NDArray[np.number[Any]]


def auc(scores: Floats, labels: Numbers, weights: Floats) -> float | None:
    """Probability that a positive scores above a negative, ties half (as scikit-learn's).

    Args:
        scores, labels, weights: (n,) each; labels 0 or 1.

    Returns:
        None where there are only positives or only negatives.
    """
    areas, _ = _auc_per_group(scores, labels, weights, np.zeros(len(scores)))
    return float(areas[0]) if len(areas) else None


def grouped_auc(scores: Floats, labels: Numbers, weights: Floats, groups: Numbers) -> float | None:
    """GAUC: the mean of the groups' AUCs, each with the group's summed weight.

    Groups with only positives or only negatives are left out (Zhu et al., KDD 2017, eq. 11).

    Returns:
        None where no group has both.
    """
    areas, group_weights = _auc_per_group(scores, labels, weights, groups)
    return float(np.average(areas, weights=group_weights)) if len(areas) else None


def _auc_per_group(
    scores: Floats, labels: Numbers, weights: Floats, groups: Numbers
) -> tuple[Floats, Floats]:
    """AUC and summed weight of each group that has positives and negatives."""
    order = np.lexsort((scores, groups))
    scores, groups = scores[order], groups[order]
    positive = (weights * labels)[order].astype(np.float64)
    negative = (weights * (1 - labels))[order].astype(np.float64)

    group_starts = _starts(groups)
    tie_starts = np.union1d(group_starts, _starts(scores))
    tie_positive = np.add.reduceat(positive, tie_starts) if len(order) else positive
    tie_negative = np.add.reduceat(negative, tie_starts) if len(order) else negative

    first_tie = np.searchsorted(tie_starts, group_starts)
    group_of_tie = np.searchsorted(group_starts, tie_starts, side="right") - 1
    before = np.cumsum(tie_negative) - tie_negative
    below = before - before[first_tie][group_of_tie]
    wins = tie_positive * (below + tie_negative / 2)

    def sums(values: Floats) -> Floats:
        totals = np.bincount(group_of_tie, values, len(group_starts))
        return totals.astype(np.float64)

    positives, negatives = sums(tie_positive), sums(tie_negative)
    both = (positives > 0) & (negatives > 0)
    areas = sums(wins)[both] / (positives * negatives)[both]
    return areas, (positives + negatives)[both]


def _starts(sorted_values: Numbers) -> NDArray[np.int64]:
    """First index of each run of equal neighbours."""
    if len(sorted_values) == 0:
        return np.zeros(0, dtype=np.int64)
    changes = np.flatnonzero(sorted_values[1:] != sorted_values[:-1]) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), changes])
