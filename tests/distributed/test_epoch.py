"""An epoch whose rows do not divide evenly trains and evaluates every row once on every plan."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.training.evaluating import evaluate
from stem_torchrec.training.session import build, open_split
from tests.support.steps import SCHEMA, config_of, random_rows, start, state_of

NUM_ROWS = 27  # on two ranks 13 and 14: the last batches of 4 have 1 and 2 rows


def write_data(folder):
    rows = random_rows(np.random.default_rng(0), NUM_ROWS)
    labels = {
        task.label_column: pa.array(
            [None if np.isnan(v) else int(v) for v in rows.labels[:, i]], pa.int8()
        )
        for i, task in enumerate(SCHEMA.tasks)
    }
    ids = {
        f.name: pa.array(
            rows.ids[f.name] if f.kind == "bag" else [bag[0] for bag in rows.ids[f.name]],
            pa.list_(pa.int32()) if f.kind == "bag" else pa.int32(),
        )
        for f in SCHEMA.sparse
    }
    dense = {f.name: pa.array(rows.dense[:, i]) for i, f in enumerate(SCHEMA.dense)}
    table = pa.table(ids | dense | labels | {"weight": pa.array(rows.weights)})
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        pq.write_table(table, folder / split / "part.parquet", row_group_size=10)


def train_epoch(ranks, config):
    """Sizes of this rank's batches, the eval record after an epoch, and the state."""
    session = start(config, ranks)
    reader = open_split(session, "train", for_training=True)
    sizes = [(len(b.labels), b.num_samples) for b in reader.epoch(0)]
    batches = reader.epoch(0)
    session.recommender.train()
    for _ in range(reader.steps_per_epoch):
        session.optimizers.set_learning_rates(1.0)
        session.step(batches)
    return sizes, evaluate(session, "test", reader.steps_per_epoch), state_of(session)


@pytest.mark.parametrize(
    "sharding", ["table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel"]
)
def test_an_odd_number_of_rows(tmp_path, pair, sharding):
    config = config_of(
        tmp_path,
        train={"batch_size": 4},
        eval={"batch_size": 5},
        embedding={"optimizer": "sgd", "lr": 1.0},
        distributed={"sharding": sharding},
    )
    write_data(tmp_path)
    (first, record, _), (second, other, _) = pair.run(train_epoch, config)
    # As many rows on every rank in a step: row-wise sharding exchanges equal parts.
    assert [rows for rows, _ in first] == [rows for rows, _ in second] == [4, 4, 4, 2]
    assert sum(real for _, real in first) + sum(real for _, real in second) == NUM_ROWS
    assert record == other
    assert record["samples"] == NUM_ROWS
    rows = random_rows(np.random.default_rng(0), NUM_ROWS)
    observed = (~np.isnan(rows.labels)).sum(0).tolist()
    assert list(record["labels"].values()) == observed


def test_two_ranks_evaluate_as_one(tmp_path, pair, alone):
    config = config_of(
        tmp_path,
        embedding={"optimizer": "sgd"},
        eval={"batch_size": 5},
        distributed={"sharding": "row_wise"},
    )
    write_data(tmp_path)
    (found, _) = pair.run(evaluate_fresh, config)
    expected = evaluate_fresh(alone, config)
    for name in ("logloss", "auc", "ne", "calibration"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


def evaluate_fresh(ranks, config):
    return evaluate(build(config, ranks), "test", 0)
