"""Ranks for shards: where they may lie, memory that is even, the same ranks every time."""

import numpy as np
import pytest

from stem_torchrec.distributed.placement import Item, place

ROOM = np.array([1e9, 1e9])


def items_of(seed, number=80, num_ranks=16, per_node=4):
    """Tables of any size; some on all ranks, some on a node, some in column shards."""
    generator = np.random.default_rng(seed)
    shards = {"uniform": (num_ranks,), "host": (per_node, 2), "device": (1, 1, 1, 3)}
    items = []
    for _ in range(number):
        spread = generator.choice(["uniform", "host", "device", "device", "device"])
        size = generator.choice(shards[spread])
        load = np.exp(generator.uniform(0, 4, 3))
        items.append(Item(np.tile(load, (size, 1)), str(spread)))
    return items


@pytest.mark.parametrize("seed", range(5))
def test_every_shard_has_the_ranks_of_its_kind(seed):
    items = items_of(seed)
    placed = place(items, 16, 4, ROOM)
    loads = np.zeros((16, 3))
    for item, ranks in zip(items, placed.ranks, strict=True):
        assert len(ranks) == len(item.loads)
        if item.spread == "uniform":
            assert ranks == list(range(16))
        if item.spread == "host":
            assert len({rank // 4 for rank in ranks}) == 1
            assert len(set(ranks)) == len(ranks)
        if len(ranks) == 4 and item.spread == "host":  # a shard for each rank of a node
            assert ranks == sorted(ranks)
        for rank, load in zip(ranks, item.loads, strict=True):
            loads[rank] += load
    np.testing.assert_allclose(placed.loads, loads)
    assert (loads[:, :2].max(axis=0) <= 1.2 * loads[:, :2].mean(axis=0)).all()
    assert loads[:, 2].max() <= 1.5 * loads[:, 2].mean()
    assert place(items, 16, 4, ROOM).ranks == placed.ranks


def test_memory_counts_before_time():
    """Two large tables that cost nothing are not put together, nor is room exceeded."""
    large, slow = Item(np.array([[8.0, 0, 0.1]]), "device"), Item(np.array([[1.0, 0, 9]]), "device")
    placed = place([large, large, *[slow] * 8], 2, 2, ROOM)
    assert placed.ranks[0] != placed.ranks[1]
    np.testing.assert_allclose(placed.loads[:, 0], 12)
    full = place([large, slow, slow], 2, 2, np.array([8.5, 0]))
    assert full.loads[:, 0].max() == 8
