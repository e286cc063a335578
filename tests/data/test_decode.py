"""Nulls, types and values that are refused, from files to batches."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError

BASE = Schema(
    features=(Feature(name="user", kind="id", num_embeddings=100),), tasks=(Task(name="click"),)
)


def read(path, schema, table, **options):
    """All rows in one batch, from row groups of two rows."""
    (path / "train").mkdir(exist_ok=True)
    named = {"user": [0] * table.num_rows, "click": [0] * table.num_rows}
    for name, values in named.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, path / "train" / "a.parquet", row_group_size=2, **options)
    (batch,) = ParquetReader(path, "train", schema, batch_size=100).epoch(0)
    return batch


def with_feature(feature):
    return BASE.model_copy(update={"features": (*BASE.features, feature)})


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64()])
def test_null_ids_are_id_0(tmp_path, kind):
    table = pa.table({"user": pa.array([5, None, None, 99, 7], kind)})
    batch = read(tmp_path, BASE, table)
    assert batch.sparse.values().tolist() == [5, 0, 0, 99, 7]
    assert batch.sparse.values().dtype == torch.int64
    assert batch.sparse.lengths().dtype == torch.int32


@pytest.mark.parametrize("of", [pa.list_, pa.large_list])
def test_null_and_empty_bags(tmp_path, of):
    schema = with_feature(Feature(name="hist", kind="bag", num_embeddings=10))
    rows = [[1, 2, 3], None, [], [4, None], [5]]
    batch = read(tmp_path, schema, pa.table({"hist": pa.array(rows, of(pa.int32()))}))
    hist = batch.sparse["hist"]
    assert hist.lengths().tolist() == [3, 0, 0, 2, 1]
    assert hist.values().tolist() == [1, 2, 3, 4, 0, 5]
    assert batch.sparse["user"].lengths().tolist() == [1] * 5


def test_bags_of_fixed_size_with_nulls(tmp_path):
    schema = with_feature(Feature(name="hist", kind="bag", num_embeddings=10))
    rows = [[1, 2], None, [3, None], None, [5, 6]]
    batch = read(tmp_path, schema, pa.table({"hist": pa.array(rows, pa.list_(pa.int32(), 2))}))
    assert batch.sparse["hist"].lengths().tolist() == [2, 0, 2, 0, 2]
    assert batch.sparse["hist"].values().tolist() == [1, 2, 3, 0, 5, 6]


def test_bags_that_are_all_null(tmp_path):
    schema = with_feature(Feature(name="hist", kind="bag", num_embeddings=10))
    batch = read(tmp_path, schema, pa.table({"hist": pa.array([None] * 3, pa.list_(pa.int64()))}))
    assert batch.sparse["hist"].lengths().tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint64()])
def test_null_and_nan_dense_values_are_0(tmp_path, kind):
    nan = np.nan if pa.types.is_floating(kind) else None
    values = pa.array([2, None, nan, 3, 4], kind, from_pandas=False)
    batch = read(
        tmp_path, with_feature(Feature(name="price", kind="dense")), pa.table([values], ["price"])
    )
    assert batch.dense.dtype == torch.float32
    assert batch.dense.flatten().tolist() == [2, 0, 0, 3, 4]


@pytest.mark.parametrize("kind", [pa.bool_(), pa.int8(), pa.int64(), pa.float16(), pa.float64()])
def test_null_and_nan_labels_are_nan(tmp_path, kind):
    nan = np.nan if pa.types.is_floating(kind) else None
    values = pa.array([True, None, False, True, False]).cast(pa.int8()).cast(kind)
    if nan is not None:
        values = pa.concat_arrays([values.slice(0, 4), pa.array([nan], kind)])
    labels = read(tmp_path, BASE, pa.table([values], ["click"])).labels.flatten()
    last = 0.0 if nan is None else float("nan")
    expected = torch.tensor([1, float("nan"), 0, 1, last])
    torch.testing.assert_close(labels, expected, rtol=0, atol=0, equal_nan=True)


def test_groups_keep_64_bits_and_null_is_minus_1(tmp_path):
    schema = BASE.model_copy(update={"group": "g"})
    groups = read(tmp_path, schema, pa.table({"g": [2**62, None, -(2**62)]})).groups
    assert groups.tolist() == [2**62, -1, -(2**62)]


def test_large_tables_keep_64_bits(tmp_path):
    wide = Feature(name="wide", kind="id", num_embeddings=2**40)
    many = Feature(name="many", kind="bag", num_embeddings=2**40)
    schema = BASE.model_copy(update={"features": (wide, many)})
    table = pa.table({"wide": [2**39, 1, 2**40 - 1], "many": [[2**40 - 1], [], [2**35]]})
    batch = read(tmp_path, schema, table)
    assert batch.sparse["wide"].values().tolist() == [2**39, 1, 2**40 - 1]
    assert batch.sparse["many"].values().tolist() == [2**40 - 1, 2**35]


def test_one_column_in_several_uses(tmp_path):
    schema = BASE.model_copy(update={"group": "user", "sample_weight": "user"})
    batch = read(tmp_path, schema, pa.table({"user": [3, 5, 8]}))
    assert batch.groups.tolist() == batch.weights.tolist() == [3, 5, 8]


@pytest.mark.parametrize("values", [[0, 1, 100], [0, 1, -1], [0, 1, 2**40]])
def test_ids_are_checked_without_statistics(tmp_path, values):
    where = rf"a\.parquet, row group 1: feature 'user' has id {values[-1]}; allowed: 0 to 99"
    with pytest.raises(UserError, match=where):
        read(tmp_path, BASE, pa.table({"user": values}), write_statistics=False)


def test_unsigned_ids_do_not_wrap(tmp_path):
    table = pa.table({"user": pa.array([2**64 - 1], pa.uint64())})
    with pytest.raises(UserError, match=rf"has id {2**64 - 1};"):
        read(tmp_path, BASE, table, write_statistics=False)


@pytest.mark.parametrize("of", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1)])
def test_bags_are_checked_without_statistics(tmp_path, of):
    schema = with_feature(Feature(name="hist", kind="bag", num_embeddings=10))
    table = pa.table({"hist": pa.array([[1], [2], [3], [10]], of(pa.int64()))})
    with pytest.raises(UserError, match=r"row group 1: feature 'hist' has id 10; allowed: 0 to 9"):
        read(tmp_path, schema, table, write_statistics=False)


@pytest.mark.parametrize("value", [2, -1, 0.5, np.inf, 1e-300, 2**60])
def test_a_label_that_is_not_0_1_or_null(tmp_path, value):
    where = r"a\.parquet, row group 1: label column 'click' has value .*; allowed: 0, 1, null"
    with pytest.raises(UserError, match=where):
        read(tmp_path, BASE, pa.table({"click": [0, None, value]}))


@pytest.mark.parametrize("value", [-0.5, np.inf, np.nan, None, 1e300])
def test_a_weight_that_is_no_weight(tmp_path, value):
    where = r"a\.parquet, row group 1: sample_weight column 'w' has value .*allowed: finite"
    with pytest.raises(UserError, match=where):
        read(
            tmp_path,
            BASE.model_copy(update={"sample_weight": "w"}),
            pa.table({"w": pa.array([0.0, 2.5, value], pa.float64())}),
        )


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_an_infinite_dense_value(tmp_path, value):
    schema = with_feature(Feature(name="price", kind="dense"))
    where = r"a\.parquet, row group 1: dense feature 'price' has value -?inf; allowed: finite"
    with pytest.raises(UserError, match=where):
        read(tmp_path, schema, pa.table({"price": [0.0, 0.0, value]}))
