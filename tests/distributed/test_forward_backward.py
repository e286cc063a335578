"""Everything up to where the tables' backward begins."""

import numpy as np
import pytest
import torch

from stem_torchrec.distributed import forward_backward
from stem_torchrec.distributed.local_lookup import LocalLookup, is_local
from tests.support.steps import batch_of, config_of, random_rows, start


@pytest.mark.parametrize("embedding", [{}, {"max_gradient": 0.3, "weight_decay": 0.7}])
def test_the_gradient_of_a_step_that_is_left_out_is_exactly_zero(
    tmp_path, alone, monkeypatch, embedding
):
    """As on a GPU, whose host does not know yet."""
    monkeypatch.setattr(forward_backward, "known_unset", lambda flag: False)
    session = start(config_of(tmp_path, embedding=embedding), alone)
    rows = random_rows(np.random.default_rng(0), 8)
    found = session.step._gradients(batch_of(rows))
    assert not found.skipped
    assert found.to_sums.isfinite().all()
    assert found.to_sums.any()
    rows.dense[0], rows.labels[0] = np.nan, 1.0
    left_out = session.step._gradients(batch_of(rows))
    assert left_out.skipped
    assert torch.equal(left_out.to_sums, torch.zeros_like(left_out.sums))


@pytest.mark.parametrize("layout", ["separate", "fused"])
def test_one_rank_looks_up_what_the_exchange_would(tmp_path, alone, layout):
    config = config_of(
        tmp_path, embedding={"layout": layout}, distributed={"sharding": "table_wise"}
    )
    session = start(config, alone)
    embeddings = session.recommender.embeddings
    assert isinstance(embeddings.local, LocalLookup)
    assert is_local(session.model.plan, 1)
    assert not is_local(session.model.plan, 2)
    sparse = batch_of(random_rows(np.random.default_rng(0), 8)).sparse
    local, exchanged = embeddings.sums(sparse), embeddings.tables(sparse)
    assert local.keys() == list(exchanged.keys())
    assert local.length_per_key() == list(exchanged.length_per_key())
    assert torch.equal(local.values(), exchanged.values())
    permuted = sparse.permute([len(sparse.keys()) - 1 - k for k in range(len(sparse.keys()))])
    assert torch.equal(embeddings.sums(permuted).values(), exchanged.values())


def test_parts_of_tables_are_looked_up_by_torchrec(tmp_path, alone):
    session = start(config_of(tmp_path, distributed={"sharding": "row_wise"}), alone)
    assert session.recommender.embeddings.local is None
