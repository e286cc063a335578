"""Which rank holds which shard: memory within one limit, then the least busy rank.

W ranks, S shards of one table. A load is (device bytes, host bytes, milliseconds of a step).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Loads = NDArray[np.float64]

_TIME = 2


class Item(NamedTuple):
    """The shards of one table.

    Attributes:
        loads: (S, 3), what each shard costs its rank.
        spread: ``uniform``, shard i on rank i; ``host``, all on the ranks of one node; ``device``,
            each where there is room.
    """

    loads: Loads
    spread: Literal["uniform", "host", "device"]


class Placement(NamedTuple):
    """Attributes:
    ranks: of each item, the rank of each shard.
    loads: (W, 3), the sums by rank.
    """

    ranks: list[list[int]]
    loads: Loads


def place(
    items: Sequence[Item], num_ranks: int, per_node: int, room: Loads, even: float = 1.1
) -> Placement:
    """Give every shard a rank. A function of its arguments alone: ties go to the lowest rank.

    What is on all ranks comes first, then what lies on one node, then the rest, each from the
    largest to the smallest (longest processing time first, Graham 1969).

    Args:
        room: (2,), device and host bytes of a rank. It is exceeded only where nothing fits.
        even: a rank takes a shard as long as it stays below this many times the mean memory; what
            is left over goes where the most room is. Closer to 1, the ranks' times differ more.
    """
    loads = np.zeros((num_ranks, 3))
    mean = sum((item.loads.sum(axis=0) for item in items), np.zeros(3)) / num_ranks
    limit = np.minimum(room, even * mean[:_TIME])
    sizes = [_share(item.loads, mean) for item in items]
    order = sorted(range(len(items)), key=lambda i: (_TURN[items[i].spread], -sizes[i]))
    ranks: list[list[int]] = [[] for _ in items]
    for i in order:
        ranks[i] = _PLACE[items[i].spread](items[i].loads, loads, limit, per_node)
        np.add.at(loads, ranks[i], items[i].loads)
    return Placement(ranks, loads)


def _share(loads: Loads, mean: Loads) -> float:
    """The largest shard as a share of a rank's mean memory."""
    return float((loads[:, :_TIME].max(axis=0) / np.maximum(mean[:_TIME], 1.0)).max())


def _on_all(shards: Loads, loads: Loads, limit: Loads, per_node: int) -> list[int]:
    return list(range(len(shards)))


def _on_one_node(shards: Loads, loads: Loads, limit: Loads, per_node: int) -> list[int]:
    """The node whose busiest rank is the least busy; its ranks in order if there is one for each
    shard, else the least busy first."""
    nodes = loads[: len(loads) // per_node * per_node].reshape(-1, per_node, 3)
    node = _best((nodes + shards.max(axis=0)).max(axis=1), limit)
    order = range(per_node)
    if len(shards) != per_node:
        order = np.argsort(nodes[node, :, _TIME], kind="stable").tolist()
    return [node * per_node + order[i % per_node] for i in range(len(shards))]


def _on_each(shards: Loads, loads: Loads, limit: Loads, per_node: int) -> list[int]:
    ranks = []
    busy = loads if len(shards) == 1 else loads.copy()
    for shard in shards:
        ranks.append(_best(busy + shard, limit))
        if len(shards) > 1:
            busy[ranks[-1]] += shard
    return ranks


def _best(loads: Loads, limit: Loads) -> int:
    """Of the loads that places would have, the fastest within the limit; else the smallest."""
    memory = loads[:, :_TIME]
    fits = (memory <= limit).all(axis=1)
    if fits.any():
        return int(np.where(fits, loads[:, _TIME], np.inf).argmin())
    return int((memory / np.maximum(limit, 1.0)).max(axis=1).argmin())


_TURN = {"uniform": 0, "host": 1, "device": 2}
_PLACE = {"uniform": _on_all, "host": _on_one_node, "device": _on_each}
