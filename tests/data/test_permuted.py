"""A feature's values of other rows: the same values in another order, and nothing else changed."""

import numpy as np
import pytest
import torch

from stem_torchrec.data.permuted import column_of, with_column
from tests.support.steps import SCHEMA, batch_of, random_rows

FEATURES = [feature.name for feature in SCHEMA.features]
SIZES = (5, 4, 0, 3)


def batches():
    """Four of 6 rows, the last ones padding."""
    generator = np.random.default_rng(0)
    return [batch_of(random_rows(generator, size), num_rows=6) for size in SIZES]


def rows_of(name: str, found) -> list[list[float]]:
    """Each row's values."""
    column = column_of(SCHEMA, name, found)
    ends = column.lengths.cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [column.values[a:b].tolist() for a, b in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("name", FEATURES)
def test_rows_come_in_another_order(name):
    before = rows_of(name, batches())
    shuffled = column_of(SCHEMA, name, batches()).shuffled(1)
    after = rows_of(name, with_column(SCHEMA, name, batches(), shuffled))
    order = np.random.default_rng(1).permutation(sum(SIZES))
    assert after == [before[row] for row in order]
    assert after != before


@pytest.mark.parametrize("name", FEATURES)
def test_nothing_else_changes(name):
    shuffled = column_of(SCHEMA, name, batches()).shuffled(1)
    for before, after in zip(
        batches(), with_column(SCHEMA, name, batches(), shuffled), strict=True
    ):
        assert after.num_samples == before.num_samples
        assert torch.equal(after.labels.nan_to_num(9.0), before.labels.nan_to_num(9.0))
        assert after.sparse.keys() == before.sparse.keys()
        assert after.sparse.lengths().dtype == before.sparse.lengths().dtype
        for other in FEATURES:
            if other != name:
                one, two = (column_of(SCHEMA, other, [batch]) for batch in (before, after))
                assert torch.equal(one.values, two.values)
                assert torch.equal(one.lengths, two.lengths)
