"""Streams of different lengths end together, and no row is lost unless asked."""

import dataclasses

import numpy as np
import pytest
import torch

from stem_torchrec.data.collate import Collator
from stem_torchrec.distributed.lockstep import in_lockstep
from tests.steps import SCHEMA, batch_of, random_rows


def stream(sizes, seed):
    generator = np.random.default_rng(seed)
    for size in sizes:
        batch = batch_of(random_rows(generator, size))
        yield dataclasses.replace(batch, num_samples=size)


def steps(ranks, sizes, remainder):
    """Rows, real rows, and user ids of each step's batch."""
    batches = stream(sizes[ranks.rank], ranks.rank)
    collator = Collator(SCHEMA)
    taken = []
    for batch in in_lockstep(batches, collator.filled, ranks.host_group, remainder=remainder):
        assert batch.sparse.stride() == len(batch.labels)
        assert batch.labels[batch.num_samples :].isnan().all()
        assert not batch.weights[batch.num_samples :].any()
        # A step of training talks to the other ranks, too.
        together = torch.ones(1)
        torch.distributed.all_reduce(together, group=ranks.host_group)
        taken.append((len(batch.labels), batch.num_samples, batch.sparse["user"].values().tolist()))
    return taken


def own(ranks, sizes):
    return [b.sparse["user"].values().tolist() for b in stream(sizes[ranks.rank], ranks.rank)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((4, 4, 2), (4,)), [4, 4, 2]),
        (((), (3, 3)), [3, 3]),
        (((5,), (2, 6)), [5, 6]),
        (((), ()), []),
        (((4, 4), (4, 4)), [4, 4]),
    ],
)
def test_a_rank_that_has_run_out_fills_up(pair, sizes, expected):
    results = pair.run(steps, sizes, "fill")
    streams = pair.run(own, sizes)
    for rank, taken in enumerate(results):
        assert [rows for rows, _, _ in taken] == expected
        real = [samples for _, samples, _ in taken]
        assert real == [*sizes[rank], *[0] * (len(expected) - len(sizes[rank]))]
        assert [ids for _, _, ids in taken if ids] == streams[rank]


@pytest.mark.parametrize(
    ("sizes", "expected"), [(((4, 4, 2), (4, 3)), [4, 4]), (((), (3,)), []), (((2,), (2,)), [2])]
)
def test_dropping_stops_with_the_shortest(pair, sizes, expected):
    for taken in pair.run(steps, sizes, "drop"):
        assert [rows for rows, _, _ in taken] == expected


def test_one_rank_alone(alone):
    taken = steps(alone, ((3, 1),), "fill")
    assert [(rows, samples) for rows, samples, _ in taken] == [(3, 3), (1, 1)]
