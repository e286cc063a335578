"""What is under way while a step computes changes no number."""

import numpy as np
import pytest
import torch

from stem_torchrec.config.reading import validate
from stem_torchrec.distributed.constraints import check_pipeline
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from stem_torchrec.errors import UserError
from tests.support.steps import batch_of, config_of, random_rows, run_steps, start, state_of


def trained(ranks, folder, device="cpu", **distributed):
    """Losses of six steps with a prediction between the third and the fourth, and the tables."""
    config = config_of(folder, distributed={"device": device, **distributed})
    generator = np.random.default_rng(ranks.rank)
    batches = [batch_of(random_rows(generator, 8)) for _ in range(7)]
    session = start(config, ranks)
    stream = iter(batches[:6])
    session.recommender.train()
    losses = [session.step(stream).dense.losses for _ in range(3)]
    ((_, logits),) = session.step.predict(iter(batches[6:]))
    losses += list(run_steps(session, stream, 3))
    return torch.stack(losses).cpu(), logits.cpu(), state_of(session).tables


def assert_equal(one, other):
    assert len(one[0]) == 6
    torch.testing.assert_close(one[:2], other[:2], atol=0, rtol=0)
    torch.testing.assert_close(one[2], other[2], atol=0, rtol=0)


def test_every_pipeline_makes_the_same_steps(tmp_path, alone, pair):
    """On a CPU no table has a cache, but the calls are those of a GPU."""
    expected = trained(alone, tmp_path)
    expected_of_pair = pair.run(trained_with_row_shards, tmp_path, "sparse_dist")
    for name in ("base", "prefetch"):
        assert_equal(trained(alone, tmp_path, pipeline=name), expected)
        found = pair.run(trained_with_row_shards, tmp_path, name)
        for rank in range(2):
            assert_equal(found[rank], expected_of_pair[rank])


def trained_with_row_shards(ranks, folder, pipeline):
    return trained(ranks, folder, sharding="row_wise", pipeline=pipeline)


@pytest.mark.parametrize(
    ("device", "kernels", "refused"),
    [
        ("cpu", {"kernel": "fused_uvm_caching"}, True),
        ("cuda", {}, True),
        ("cuda", {"kernel": "fused"}, True),
        ("cuda", {"kernel": "fused_uvm_caching"}, False),
        ("cuda", {"tables": {"*__user": {"kernel": ["fused", "fused_uvm_caching"]}}}, False),
    ],
)
def test_prefetching_without_caches_is_the_users_error(device, kernels, refused):
    sections = {"run": {"dir": "r"}, "data": {"path": "d"}}
    config = validate(sections | {"distributed": {"pipeline": "prefetch", **kernels}})
    if not refused:
        check_pipeline(config.distributed, device)
        return
    with pytest.raises(UserError, match=r"distributed\.pipeline: 'prefetch'.*base, sparse_dist"):
        check_pipeline(config.distributed, device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_in_the_caches_ahead_equal_rows_when_needed(tmp_path):
    """A prediction in between has the caches for itself."""
    config = config_of(tmp_path, distributed={"device": "cuda"})
    ranks = start_ranks(config.distributed)
    try:
        caching = {"device": "cuda", "kernel": "fused_uvm_caching", "sharding": "table_wise"}
        one, other = (
            trained(ranks, tmp_path, **caching, pipeline=name)
            for name in ("prefetch", "sparse_dist")
        )
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    finally:
        stop_ranks()
