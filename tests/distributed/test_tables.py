"""Initial tables are a function of seed, table, row and column alone."""

import math

import numpy as np
import pytest
import torch

from stem_torchrec.distributed.tables import TableShard, _fill, _table_seed, local_shards
from tests.support.steps import SCHEMA, assert_close, config_of, start, state_of

SHARDINGS = ["table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel"]
MASK = (1 << 64) - 1


def tables_of(ranks, config):
    session = start(config, ranks)
    return state_of(session).tables, [shard[0] for shard in local_shards(session.model)]


def config_with(folder, sharding="table_wise", *, seed=3, std=0.5, optimizer="sgd"):
    return config_of(
        folder,
        run={"dir": "unused", "seed": seed},
        embedding={"dim": 8, "init_std": std, "optimizer": optimizer},
        distributed={"sharding": sharding},
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, alone):
    return tables_of(alone, config_with(tmp_path_factory.mktemp("data")))[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_any_plan_gives_the_same_tables(tmp_path, pair, reference, sharding, optimizer):
    config = config_with(tmp_path, sharding, optimizer=optimizer)
    (tables, first), (_, second) = pair.run(tables_of, config)
    assert_close(tables, reference, 0.0)
    assert set(first) | set(second) == set(reference)
    if sharding == "table_wise":  # a table lies on one rank
        assert not set(first) & set(second)
    if sharding in ("column_wise", "data_parallel"):
        assert set(first) == set(second) == set(reference)


def test_every_owner_has_a_table_of_every_feature(reference):
    names = {f.table_name for f in SCHEMA.sparse}
    owners = ("shared", *SCHEMA.task_names)
    assert set(reference) == {f"{owner}__{name}" for owner in owners for name in names}
    for name, values in reference.items():
        feature = next(f for f in SCHEMA.sparse if f.name == name.split("__")[1])
        assert values.shape == (feature.num_embeddings, 8)


def test_tables_and_seeds_differ(tmp_path, alone, reference):
    other, _ = tables_of(alone, config_with(tmp_path, seed=4))
    for name in reference:
        assert not torch.equal(other[name], reference[name])
    assert not torch.equal(reference["shared__user"], reference["like__user"])


def split_mix(counter, seed):
    """SplitMix64's output for one state, with Python's integers."""
    z = (counter * 0x9E3779B97F4A7C15 + seed) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def filled(
    rows, columns, *, first_row=0, first_column=0, dim=None, bound=1.0, table="shared__user"
):
    values = torch.full((rows, columns), float("nan"))
    shard = TableShard(table, values, first_row, first_column, dim or columns)
    _fill(shard, _table_seed(0, table), bound)
    return values


def test_values_are_split_mix_of_the_position():
    found = filled(3, 2, first_row=5, first_column=4, dim=16, bound=0.7)
    seed = _table_seed(0, "shared__user")
    for row in range(3):
        for column in range(2):
            unit = (split_mix((5 + row) * 16 + 4 + column, seed) >> 40) * 2.0**-24
            assert found[row, column].item() == pytest.approx((2 * unit - 1) * 0.7, abs=1e-6)


def test_pieces_are_cut_from_one_table():
    whole = filled(70_000, 8)  # more rows than are filled at once
    assert torch.equal(
        filled(3, 4, first_row=65_535, first_column=4, dim=8), whole[65_535:65_538, 4:]
    )


def test_values_are_uniform_and_independent():
    values = filled(20_000, 16, bound=math.sqrt(3)).double().numpy()
    assert np.abs(values).max() <= math.sqrt(3)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert values.mean() == pytest.approx(0, abs=0.01)
    histogram, _ = np.histogram(values, bins=20)
    assert histogram / values.size == pytest.approx(0.05, abs=0.003)
    correlations = np.corrcoef(values.T) - np.eye(16)
    assert np.abs(correlations).max() < 0.04
    other = filled(20_000, 16, bound=math.sqrt(3), table="like__user").double().numpy()
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.02


def test_rows_of_a_very_large_table():
    """Positions past 2^31 neither overflow nor repeat."""
    far = filled(4, 16, first_row=2**40)
    assert far.isfinite().all()
    assert len(far.unique()) > 60
