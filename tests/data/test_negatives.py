"""Left-out negatives: the same rows for every rank and epoch, and what stays stands for all."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_torchrec.data.negatives import negative_sampling
from stem_torchrec.data.reader import ParquetReader, find_rows
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError
from stem_torchrec.training.evaluation import Joined, evaluation

SCHEMA = Schema(
    features=(
        Feature(name="row", kind="id", num_embeddings=100_000),
        Feature(name="bag", kind="bag", num_embeddings=100_000),
    ),
    tasks=(Task(name="click"), Task(name="like", column="liked")),
)


def labels_of(num_rows):
    """(R, 2): clicks and likes at rates that depend on the row, a fifth of the likes null."""
    generator = np.random.default_rng(0)
    rates = np.stack([0.02 + 0.2 * (np.arange(num_rows) % 3), np.full(num_rows, 0.05)], 1)
    labels = (generator.random((num_rows, 2)) < rates).astype(float)
    labels[generator.random(num_rows) < 0.2, 1] = np.nan
    return labels


def write(folder, num_rows, *, files=3, row_group_size=1000, **changed):
    labels = labels_of(num_rows)
    rows = np.arange(num_rows)
    table = pa.table(
        {
            "row": rows,
            "bag": pa.array([[row] * (row % 3) for row in rows.tolist()], pa.list_(pa.int64())),
            "click": pa.array(labels[:, 0].astype(np.int8)),
            "liked": pa.array(labels[:, 1], from_pandas=True).cast(pa.bool_()),
            "w": pa.array(rows + 0.5),
        }
        | changed
    )
    (folder / "train").mkdir(parents=True)
    for part, rows_of_part in enumerate(np.array_split(rows, files)):
        piece = table.slice(rows_of_part[0] if len(rows_of_part) else 0, len(rows_of_part))
        pq.write_table(piece, folder / "train" / f"{part}.parquet", row_group_size=row_group_size)
    return labels


def kept(folder, rate, *, seed=0, schema=SCHEMA, **options):
    """Row, labels and weight of each row of an epoch, and the reader."""
    options = {"batch_size": 512} | options
    reader = ParquetReader(
        folder, "train", schema, negatives=negative_sampling(rate, seed, schema), **options
    )
    batches = list(reader.epoch(0))
    for batch in batches:
        bags = batch.sparse["bag"]
        row = batch.sparse["row"].values()
        assert bags.lengths().tolist() == (row % 3).tolist()
        assert bags.values().tolist() == row.repeat_interleave(row % 3).tolist()
    rows = np.concatenate([b.sparse["row"].values().numpy() for b in batches])
    labels = np.concatenate([b.labels.numpy() for b in batches])
    weights = np.concatenate([b.weights.numpy() for b in batches])
    return rows, labels, weights, reader


def test_positives_stay_and_negatives_stand_for_those_left_out(tmp_path):
    labels = write(tmp_path, 6000)
    rows, found, weights, reader = kept(tmp_path, 0.25)
    assert len(set(rows.tolist())) == len(rows) == reader.num_rows
    np.testing.assert_array_equal(found, labels[rows].astype(np.float32))
    is_positive = (labels == 1).any(1)
    assert set(np.flatnonzero(is_positive)) <= set(rows.tolist())
    np.testing.assert_array_equal(weights, np.where(is_positive[rows], 1.0, 4.0))
    negatives = (~is_positive).sum()
    spread = np.sqrt(negatives * 0.25 * 0.75)
    assert abs((~is_positive[rows]).sum() - negatives / 4) < 4 * spread


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=3
    ),
    row_group_size=st.integers(3, 40),
    shuffle=st.booleans(),
)
def test_every_kept_row_once_in_equal_steps_over_interruptions(
    tmp_path_factory, shapes, row_group_size, shuffle
):
    folder = tmp_path_factory.mktemp("data")
    write(folder, 200, row_group_size=row_group_size)
    expected = sorted(kept(folder, 0.3)[0].tolist())
    seen, state, place = [], None, None
    for world_size, batch_size, steps in [*shapes, (2, 16, 10_000)]:
        readers = [
            ParquetReader(
                folder,
                "train",
                SCHEMA,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
                shuffle=shuffle,
                prefetch=0,
                negatives=negative_sampling(0.3, 0, SCHEMA),
            )
            for rank in range(world_size)
        ]
        place = readers[0].start() if state is None else readers[0].resumed(state)
        streams = [reader.batches(place) for reader in readers]
        for _, of_step in zip(range(steps), zip(*streams, strict=True), strict=False):
            assert len({len(batch.labels) for batch in of_step}) == 1
            seen += [row for b in of_step for row in b.sparse["row"].values().tolist()]
            place = readers[0].after(place)
        if place.epoch == 1:
            break
        state = json.loads(json.dumps(place.state_dict()))
    assert place.epoch == 1
    assert sorted(seen) == expected


def test_the_choice_depends_on_the_seed_alone(tmp_path):
    write(tmp_path, 2000)
    first = kept(tmp_path, 0.5)[0]
    assert sorted(kept(tmp_path, 0.5, shuffle=True, prefetch=0)[0]) == first.tolist()
    assert set(kept(tmp_path, 0.5, seed=1)[0]) != set(first)


def test_weights_of_the_data_are_multiplied(tmp_path):
    labels = write(tmp_path, 600)
    schema = SCHEMA.model_copy(update={"sample_weight": "w"})
    rows, _, weights, _ = kept(tmp_path, 0.5, schema=schema)
    is_positive = (labels[rows] == 1).any(1)
    np.testing.assert_allclose(weights, (rows + 0.5) * np.where(is_positive, 1, 2))


def test_metrics_on_what_is_kept_estimate_those_on_everything(tmp_path):
    """Log loss, NE, AUC and calibration of fixed predictions, both tasks, nulls included."""
    num_rows, tasks = 12_000, SCHEMA.task_names
    labels = write(tmp_path, num_rows, row_group_size=4000)
    generator = np.random.default_rng(1)
    logits = -2 + np.nan_to_num(labels) + generator.normal(size=labels.shape)

    def metrics(rows, weights):
        target = labels[rows]
        weights = weights[:, None] * ~np.isnan(target)
        return evaluation(tasks, Joined(logits[rows], np.nan_to_num(target), weights, None))

    whole = metrics(np.arange(num_rows), np.ones(num_rows))
    estimates = []
    for seed in range(12):
        rows, _, weights, _ = kept(tmp_path, 0.2, seed=seed, batch_size=4096)
        estimates.append(metrics(rows, weights))
    for name in ("logloss", "ne", "auc", "calibration"):
        for task in tasks:
            found = np.array([estimate[name][task] for estimate in estimates])
            error = found.std(ddof=1) / np.sqrt(len(found))
            assert abs(found.mean() - whole[name][task]) < 4 * error + 1e-4, (name, task)
    # Without the weights the same figures are far off.
    naive = metrics(rows, np.ones(len(rows)))
    assert naive["calibration"]["click"] < 0.7 * whole["calibration"]["click"]


def test_with_one_task_weights_are_the_correction_of_the_probability(tmp_path):
    """He et al. (2014): p / (p + (1 - p) / w) of a model of the unweighted rows, w the rate."""
    rate, schema = 0.2, SCHEMA.select(tasks=["click"])
    write(tmp_path, 6000)
    rows, labels, weights, _ = kept(tmp_path, rate, schema=schema)
    for value in range(3):  # a model with a free probability per value fits the mean label
        chosen = rows % 3 == value
        clicks = labels[chosen, 0]
        p = clicks.mean()
        corrected = p / (p + (1 - p) / rate)
        weighted = (weights[chosen] * clicks).sum() / weights[chosen].sum()
        assert weighted == pytest.approx(corrected, rel=1e-6)
        logit = np.log(p / (1 - p)) + np.log(rate)
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(corrected, rel=1e-6)


def test_keeping_everything_is_no_sampling():
    assert negative_sampling(1.0, 0, SCHEMA) is None


def test_only_the_tasks_in_use_make_a_positive(tmp_path):
    labels = write(tmp_path, 3000)
    rows = kept(tmp_path, 0.1, schema=SCHEMA.select(tasks=["like"]))[0]
    assert set(np.flatnonzero(labels[:, 1] == 1)) <= set(rows.tolist())
    assert not set(np.flatnonzero(labels[:, 0] == 1)) <= set(rows.tolist())


def test_a_wrong_label_is_found_in_a_row_that_would_be_left_out(tmp_path):
    write(tmp_path, 100, click=pa.array([0] * 99 + [2]))
    sampling = negative_sampling(1e-9, 0, SCHEMA)
    with pytest.raises(UserError, match=r"2\.parquet, row group 0: label column 'click' has .* 2"):
        find_rows(tmp_path, "train", SCHEMA, negatives=sampling)


def test_nothing_left(tmp_path):
    none = pa.array([0] * 100)
    write(tmp_path, 100, click=none, liked=none)
    sampling = negative_sampling(1e-9, 0, SCHEMA)
    with pytest.raises(UserError, match=r"data\.negative_rate: 1e-09 leaves none of 100 rows"):
        find_rows(tmp_path, "train", SCHEMA, negatives=sampling)
