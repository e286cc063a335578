"""Users and items that one task puts close together and another far apart.

The analysis of STEM (Su et al., AAAI 2024, figure 5): the distance between a user's and an item's
row stands for the preference, small for much. Single-task tables tell each task's own preference;
where two tasks contradict each other, one shared table can follow only one of them.

n samples, each a user-item pair; D embedding dimension.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.data.auc import auc
from stem_torchrec.errors import UserError

Floats = NDArray[np.float64]
Table = NDArray[np.float32]
Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]

_CHUNK = 1 << 18


class Contradicting(NamedTuple):
    """Which samples (n,) two tasks contradict each other on.

    Attributes:
        near_a: close for A, far for B.
        near_b: far for A, close for B.
    """

    near_a: Mask
    near_b: Mask


class Summary(NamedTuple):
    """Of some distances; a figure is None where there are none."""

    pairs: int
    mean: float | None = None
    std: float | None = None
    quartile_1: float | None = None
    median: float | None = None
    quartile_3: float | None = None


def check_share(share: float) -> None:
    """Raise UserError unless the nearest and the farthest share can be told apart."""
    if not 0 < share <= 0.5:
        raise UserError(f"--share: {share}; allowed: above 0, at most 0.5")


def distances(users: Table, items: Table, user_ids: Ids, item_ids: Ids) -> Floats:
    """Euclidean distance (n,) between the user's row and the item's, tables (rows, D)."""
    out = np.empty(len(user_ids))
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        difference = users[user_ids[part]].astype(np.float64) - items[item_ids[part]]
        out[part] = np.sqrt(np.einsum("nd,nd->n", difference, difference))
    return out


def contradicting(distance_a: Floats, distance_b: Floats, share: float) -> Contradicting:
    """Samples in the nearest ``share`` by one task's distance (n,), the farthest by the other's.

    Equal distances are in or out together, by the mean of their ranks: a pair that occurs often
    is not parted.
    """
    near_a, far_a = _ends(distance_a, share)
    near_b, far_b = _ends(distance_b, share)
    return Contradicting(near_a & far_b, far_a & near_b)


def summary(values: Floats) -> Summary:
    """Mean, standard deviation (of all values, not a sample) and quartiles."""
    if not len(values):
        return Summary(0)
    quartiles = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Summary(len(values), float(values.mean()), float(values.std()), *quartiles)


def separation(near_a: Floats, near_b: Floats) -> float | None:
    """Probability that a pair close for A is closer than one close for B, ties half.

    1 if the table follows A's preference, 0 if B's, 0.5 if it does not tell the two directions
    apart; None if one has no pair.
    """
    labels = np.repeat([0, 1], [len(near_a), len(near_b)])
    return auc(np.concatenate([near_a, near_b]), labels, np.ones(len(labels)))


def _ends(values: Floats, share: float) -> tuple[Mask, Mask]:
    """The smallest and the largest share of the values."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    # Twice the mean rank of equal values, where the smallest value's rank is 1/2.
    twice_rank = below + not_above
    limit = 2 * share * len(values)
    return twice_rank < limit, 2 * len(values) - twice_rank < limit
