"""The helper itself: a failing rank fails the test, and says why."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.distributed.processes import Processes, RankFailed


def total_of(ranks, value):
    total = torch.tensor([value + ranks.rank])
    dist.all_reduce(total)
    return ranks.rank, total.item()


def fail_on_last(ranks):
    if ranks.rank == ranks.world_size - 1:
        raise ValueError("the last rank broke")
    dist.barrier()


def end_on_first(ranks):
    if ranks.is_first:
        os._exit(7)
    dist.barrier()


def never_end(ranks):
    dist.barrier()
    if ranks.is_first:
        dist.recv(torch.zeros(1), src=1)


def test_every_rank_runs_and_answers(pair):
    assert pair.run(total_of, 10) == [(0, 21), (1, 21)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fail_on_last, r"(?s)rank 1:.*ValueError: the last rank broke"),
        (end_on_first, "rank 0 ended with exit code 7"),
        (never_end, r"no result of ranks \[0\]"),
    ],
)
def test_a_failing_rank_fails_the_test_and_the_next_run_is_fresh(function, message):
    processes = Processes(2)
    try:
        with pytest.raises(RankFailed, match=message):
            processes.run(function, timeout_s=60 if function is not never_end else 30)
        assert processes.run(total_of, 1) == [(0, 3), (1, 3)]
    finally:
        processes.close()
