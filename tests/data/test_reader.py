"""Epochs of the reader: every row once, whole, in one order, in equal steps on every rank.

Row i of a test split holds values that follow from i, so that a batch shows which rows it has
and whether their columns still belong together.
"""

import dataclasses
import json
import threading
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config.days import parse_days
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError

SCHEMA = Schema(
    features=(
        Feature(name="bag_a", kind="bag", num_embeddings=1000),
        Feature(name="row", kind="id", num_embeddings=1000),
        Feature(name="price", kind="dense"),
        Feature(name="bag_b", kind="bag", num_embeddings=1000),
        Feature(name="item", kind="id", num_embeddings=7),
        Feature(name="age", kind="dense"),
    ),
    tasks=(Task(name="click"), Task(name="like", column="liked")),
    sample_weight="w",
    group="g",
)


def label(row):
    return None if row % 3 == 0 else row % 2


def write_split(path, files):
    """``files`` lists the row-group sizes of each file; returns the number of rows."""
    (path / "train").mkdir(parents=True)
    start = 0
    for number, sizes in enumerate(files):
        rows = range(start, start + sum(sizes))
        start = rows.stop
        table = pa.table(
            {
                "row": pa.array(rows, pa.int32()),
                "item": pa.array([row % 7 for row in rows], pa.uint8()),
                "bag_a": pa.array([[row] * (row % 4) for row in rows], pa.list_(pa.int64())),
                "bag_b": pa.array([[row, row % 5] for row in rows], pa.large_list(pa.int32())),
                "price": pa.array([row / 2 for row in rows], pa.float64()),
                "age": pa.array(rows, pa.int16()),
                "click": pa.array([label(row) for row in rows], pa.int8()),
                "liked": pa.array([bool(row % 5) for row in rows], pa.bool_()),
                "w": pa.array([row + 0.5 for row in rows], pa.float32()),
                "g": pa.array([row - 10 for row in rows], pa.int64()),
                "unused": pa.array(["x"] * len(rows)),
            }
        )
        with pq.ParquetWriter(path / "train" / f"{number:03}.parquet", table.schema) as writer:
            first = 0
            for size in sizes:
                writer.write_table(table.slice(first, size), row_group_size=max(size, 1))
                first += size
    return start


def rows_of(batch):
    """Rows of a batch, after checking that each is whole."""
    assert batch.sparse.keys() == ["bag_a", "row", "bag_b", "item"]
    assert batch.sparse.values().dtype == torch.int64
    assert batch.sparse.lengths().dtype == torch.int32
    rows = batch.sparse["row"].values()
    assert batch.num_samples == batch.sparse.stride() == len(rows) == len(batch.labels)
    listed = rows.tolist()
    assert batch.sparse["bag_a"].lengths().tolist() == [row % 4 for row in listed]
    assert batch.sparse["bag_a"].values().tolist() == [r for r in listed for _ in range(r % 4)]
    assert batch.sparse["bag_b"].values().tolist() == [v for r in listed for v in (r, r % 5)]
    assert batch.sparse["item"].values().tolist() == [row % 7 for row in listed]
    assert sum(batch.sparse.length_per_key()) == batch.sparse.values().numel()
    assert torch.equal(batch.dense, torch.stack([rows / 2, rows.float()], 1))
    labels = [[np.nan if label(r) is None else label(r), float(r % 5 > 0)] for r in listed]
    np.testing.assert_array_equal(batch.labels.numpy(), np.array(labels, np.float32))
    assert torch.equal(batch.weights, rows + 0.5)
    assert torch.equal(batch.groups, rows - 10)
    assert all(part.is_contiguous() for part in (batch.dense, batch.labels, batch.weights))
    return listed


def without_padding(batch):
    """The real rows alone, after checking that the others are padding."""
    real, keys = batch.num_samples, batch.sparse.keys()
    lengths = batch.sparse.lengths().view(len(keys), -1)
    assert not lengths[:, real:].any()
    assert batch.labels[real:].isnan().all()
    assert not batch.weights[real:].any()
    return dataclasses.replace(
        batch,
        sparse=KeyedJaggedTensor(
            keys, batch.sparse.values(), lengths=lengths[:, :real].reshape(-1)
        ),
        **{name: getattr(batch, name)[:real] for name in ("dense", "labels", "weights", "groups")},
    )


def is_padding(batch):
    return (
        batch.num_samples == 0
        and batch.sparse.stride() == 1
        and batch.sparse.lengths().tolist() == [0] * 4
        and batch.sparse.values().numel() == 0
        and batch.sparse.length_per_key() == [0] * 4
        and batch.dense.tolist() == [[0.0, 0.0]]
        and bool(batch.labels.isnan().all())
        and batch.labels.shape == (1, 2)
        and batch.weights.tolist() == [0.0]
        and batch.groups.tolist() == [-1]
    )


def prefetch_threads():
    return [thread for thread in threading.enumerate() if "prefetch" in thread.name]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=4), min_size=1, max_size=4),
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 17),
    shuffle=st.booleans(),
    width=st.integers(1, 4),
    prefetch=st.integers(0, 3),
)
def test_every_row_once_whole_and_in_one_order_on_any_number_of_ranks(
    tmp_path_factory, files, world_size, batch_size, shuffle, width, prefetch
):
    path = tmp_path_factory.mktemp("data")
    files = [*files, [1]]
    num_rows = write_split(path, files)

    def read(rank, ranks):
        reader = ParquetReader(
            path,
            "train",
            SCHEMA,
            batch_size=batch_size,
            rank=rank,
            world_size=ranks,
            shuffle=shuffle,
            seed=3,
            shuffle_row_groups=width,
            prefetch=prefetch,
        )
        return reader, list(reader.epoch(2))

    readers, batches = zip(*(read(rank, world_size) for rank in range(world_size)), strict=True)
    steps = {len(of_rank) for of_rank in batches} | {r.steps_per_epoch for r in readers}
    assert len(steps) == 1
    for step, of_step in enumerate(zip(*batches, strict=True)):
        samples = sum(batch.num_samples for batch in of_step)
        assert {reader.samples_in_step(step) for reader in readers} == {samples}
        assert samples > 0
        assert len({len(batch.labels) for batch in of_step}) == 1
    rows = []
    for of_rank in batches:
        real = [batch for batch in of_rank if batch.num_samples]
        assert all(is_padding(batch) for batch in of_rank[len(real) :])
        assert all(batch.num_samples == batch_size for batch in real[:-1])
        rows += [row for batch in real for row in rows_of(without_padding(batch))]
    assert sorted(rows) == list(range(num_rows))
    assert {reader.num_rows for reader in readers} == {num_rows}
    if not shuffle:
        assert rows == list(range(num_rows))
    _, alone = read(0, 1)
    assert rows == [row for batch in alone for row in rows_of(batch)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.lists(st.lists(st.integers(0, 13), min_size=1, max_size=4), min_size=1, max_size=4),
    phases=st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 17), st.integers(1, 4)), min_size=1, max_size=4
    ),
    shuffle=st.booleans(),
    width=st.integers(1, 4),
)
def test_every_row_once_over_interruptions_on_other_ranks(
    tmp_path_factory, files, phases, shuffle, width
):
    path = tmp_path_factory.mktemp("data")
    num_rows = write_split(path, [*files, [1]])
    state, rows = None, []
    for phase, (world_size, batch_size, steps) in enumerate(phases):
        readers = [
            ParquetReader(
                path,
                "train",
                SCHEMA,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                shuffle=shuffle,
                shuffle_row_groups=width,
                prefetch=0,
            )
            for rank in range(world_size)
        ]
        places = [r.start(1) if state is None else r.resumed(state) for r in readers]
        assert all(place == places[0] for place in places)
        place = places[0]
        batches = [list(reader.batches(place)) for reader in readers]
        assert {len(of_rank) for of_rank in batches} == {place.steps_left}
        last = phase == len(phases) - 1
        for of_step in islice(zip(*batches, strict=True), None if last else steps):
            samples = sum(batch.num_samples for batch in of_step)
            assert samples == place.division.samples_in_step(place.step) > 0
            assert len({len(batch.labels) for batch in of_step}) == 1
            real = [batch for batch in of_step if batch.num_samples]
            rows += [row for batch in real for row in rows_of(without_padding(batch))]
            place = readers[0].after(place)
        if place.epoch == 2:
            assert place == readers[0].start(2)
            break
        state = json.loads(json.dumps(place.state_dict()))
    assert place.epoch == 2
    assert sorted(rows) == list(range(num_rows))


@pytest.fixture
def path(tmp_path):
    assert write_split(tmp_path, [[30, 30, 30], [30, 30]]) == 150
    return tmp_path


def order(path, epoch, **options):
    reader = ParquetReader(path, "train", SCHEMA, batch_size=40, **options)
    return [row for batch in reader.epoch(epoch) for row in rows_of(batch)]


def test_the_order_changes_with_epoch_and_seed_and_only_with_them(path):
    orders = [
        order(path, epoch, shuffle=True, seed=seed, shuffle_row_groups=2)
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(rows) for rows in orders}) == 4
    assert orders[0] == order(path, 0, shuffle=True, seed=0, shuffle_row_groups=2, prefetch=0)


def test_one_reader_gives_the_same_epoch_again(path):
    reader = ParquetReader(path, "train", SCHEMA, batch_size=16, shuffle=True)
    first, second, other = ([rows_of(b) for b in reader.epoch(e)] for e in (0, 0, 1))
    assert first == second
    assert first != other


def equal(one, other):
    return (
        one.num_samples == other.num_samples
        and torch.equal(one.sparse.values(), other.sparse.values())
        and torch.equal(one.sparse.lengths(), other.sparse.lengths())
        and torch.equal(one.dense, other.dense)
        and torch.equal(one.weights, other.weights)
        and np.array_equal(one.labels, other.labels, equal_nan=True)
    )


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_restored_reader_yields_the_very_next_batches(path, steps):
    options = {"batch_size": 8, "rank": 1, "world_size": 2, "shuffle": True, "seed": 5}
    reader = ParquetReader(path, "train", SCHEMA, **options)
    place = reader.start(3)
    expected = list(reader.batches(place))[steps:]
    for _ in range(steps):
        place = reader.after(place)
    other = ParquetReader(path, "train", SCHEMA, **options)
    found = list(other.batches(other.resumed(place.state_dict())))
    assert len(found) == len(expected) > 0
    assert all(equal(*pair) for pair in zip(found, expected, strict=True))


def test_what_was_read_before_the_interruption_is_not_opened_again(path):
    reader = ParquetReader(path, "train", SCHEMA, batch_size=100)
    (path / "train" / "000.parquet").unlink()
    (batch,) = reader.batches(reader.after(reader.start()))
    assert rows_of(batch) == list(range(100, 150))


@pytest.mark.parametrize("change", [{"seed": 6}, {"shuffle": False}, {"shuffle_row_groups": 1}])
def test_another_order_inside_an_epoch_is_refused(path, change):
    options = {"batch_size": 8, "shuffle": True, "seed": 5}
    reader = ParquetReader(path, "train", SCHEMA, **options)
    other = ParquetReader(path, "train", SCHEMA, **(options | change))
    inside = reader.after(reader.start(1))
    with pytest.raises(UserError, match=r"inside epoch 1.*order of rows has changed"):
        other.resumed(inside.state_dict())
    assert other.resumed(reader.start(1).state_dict()) == other.start(1)


def test_a_rank_opens_only_the_files_of_its_share(path):
    first, last = (
        ParquetReader(path, "train", SCHEMA, batch_size=75, rank=rank, world_size=3)
        for rank in (0, 2)
    )
    (path / "train" / "000.parquet").unlink()
    (batch,) = last.epoch(0)
    assert rows_of(batch) == list(range(100, 150))
    with pytest.raises(UserError, match=r"000\.parquet, row group 0: cannot be read"):
        list(first.epoch(0))


def test_ids_only_without_optional_columns(path):
    selected = SCHEMA.select(features=["row", "item"], tasks=["like"])
    schema = selected.model_copy(update={"sample_weight": None, "group": None})
    reader = ParquetReader(path, "train", schema, batch_size=100, rank=0, world_size=1)
    first, last = reader.epoch(0)
    assert first.sparse.values().tolist() == [*range(100), *(row % 7 for row in range(100))]
    assert first.sparse.lengths().tolist() == [1] * 200
    assert last.sparse.lengths().tolist() == [1] * 100
    assert first.dense.shape == (100, 0)
    assert first.labels.shape == (100, 1)
    assert first.weights is None
    assert first.groups is None


def test_padding_without_optional_columns(path):
    schema = SCHEMA.select(features=["row"]).model_copy(
        update={"sample_weight": None, "group": None}
    )
    reader = ParquetReader(path, "train", schema, batch_size=1, rank=0, world_size=151)
    (batch,) = reader.epoch(0)
    assert batch.num_samples == 0
    assert batch.dense.shape == (1, 0)
    assert batch.weights is None
    assert batch.groups is None


def test_closing_early_leaves_no_thread(path):
    reader = ParquetReader(path, "train", SCHEMA, batch_size=4, shuffle=True)
    batches = reader.epoch(0)
    next(batches)
    assert len(prefetch_threads()) == 2
    batches.close()
    assert not prefetch_threads()
    assert len(list(reader.epoch(0))) == 38


def test_a_damaged_page_names_the_file_and_leaves_no_thread(path):
    file = path / "train" / "001.parquet"
    content = bytearray(file.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-footer] = bytes(len(content) - footer - 4)
    reader = ParquetReader(path, "train", SCHEMA, batch_size=30)
    file.write_bytes(content)
    batches = reader.epoch(0)
    for _ in range(3):
        rows_of(next(batches))
    with pytest.raises(UserError, match=r"001\.parquet, row group 0: cannot be read as Parquet"):
        list(batches)
    assert not prefetch_threads()


def test_a_truncated_file(path):
    file = path / "train" / "001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"001\.parquet: cannot be read as Parquet"):
        ParquetReader(path, "train", SCHEMA, batch_size=4)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_file_that_changes_while_it_is_read(path, prefetch):
    reader = ParquetReader(path, "train", SCHEMA, batch_size=4, prefetch=prefetch)
    file = path / "train" / "000.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=29)
    with pytest.raises(UserError, match=r"000\.parquet: was changed"):
        next(reader.epoch(0))


def test_more_files_than_are_kept_open(tmp_path):
    num_rows = write_split(tmp_path, [[2, 1]] * 20)
    rows = order(tmp_path, 0, shuffle=True, shuffle_row_groups=3)
    assert sorted(rows) == list(range(num_rows))


def test_days_choose_rows(path):
    for name, day in (("000", "20220408"), ("001", "20220409")):
        (path / "train" / f"{name}.parquet").rename(path / "train" / f"{day}.parquet")
    assert order(path, 0, days=parse_days("2022-04-09")) == list(range(90, 150))


def test_only_the_columns_of_the_schema_are_read(path, monkeypatch):
    asked = []
    read = pq.ParquetFile.read_row_group

    def note(file, index, *, columns, **options):
        asked.append(columns)
        return read(file, index, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", note)
    schema = SCHEMA.select(features=["row"], tasks=["like"])
    for _ in ParquetReader(path, "train", schema, batch_size=50).epoch(0):
        pass
    assert asked == [["row", "liked", "w", "g"]] * 5
