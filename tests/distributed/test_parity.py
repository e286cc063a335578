"""Training on two ranks equals training on one with the joined batches, however tables lie."""

from itertools import chain

import numpy as np
import pytest
import torch

from stem_torchrec.data.schema import Feature
from stem_torchrec.nn.models import MODELS
from tests.support.steps import (
    DIM,
    SCHEMA,
    assert_close,
    assert_moved,
    batch_of,
    config_of,
    join_rows,
    largest_difference,
    random_rows,
    train_on,
)

TOLERANCE = 1e-5
NUM_STEPS = 13
SHARDINGS = ("table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel")
# Where a gradient nearly cancels, a smaller one would turn its rounding into a whole step.
EPSILON = 1e-4
DENSE_RATE = {"sgd": 0.02, "adagrad": 0.02, "adam": 0.005}
# Rates at which so many steps move every table by far more than the tolerance.
TABLE_RATE = {"sgd": 5.0, "adagrad": 0.2, "rowwise_adagrad": 0.2, "adam": 0.02}


def rows_of_steps(*, even=False):
    """Rows per step and rank: different nulls, a smaller batch, a rank without rows."""
    generator = np.random.default_rng(7)
    uneven = {} if even else {5: (8, 3), NUM_STEPS - 1: (6, 0)}
    steps = []
    for step in range(NUM_STEPS):
        sizes = uneven.get(step, (8, 8))
        parts = [
            random_rows(generator, size, null_share=share)
            for size, share in zip(sizes, (0.5, 0.1), strict=True)
        ]
        if step == 9:  # one rank has no label of a task
            parts[0].labels[:, 0] = np.nan
        if step == 11:  # no rank has
            parts[0].labels[:, 1] = parts[1].labels[:, 1] = np.nan
        steps.append(parts)
    return steps


def share_of(steps, rank):
    """A rank's batches; all ranks have as many rows in a step, the rest is padding."""
    return [batch_of(parts[rank], num_rows=max(map(len, parts))) for parts in steps]


def train_share(ranks, config, steps):
    """This rank's training, on its share of the rows."""
    torch.manual_seed(100 + ranks.rank)  # it is the config's seed that has to count
    return train_on(ranks, config, share_of(steps, ranks.rank))


@pytest.fixture(scope="module")
def on_one_rank(alone):
    """Training on one rank with the joined rows, computed once per config."""
    known = {}

    def train(config, steps):
        distributed = config.distributed.model_copy(update={"sharding": "table_wise"})
        config = config.model_copy(update={"distributed": distributed})
        num_rows = sum(len(part) for parts in steps for part in parts)
        key = config.model_dump_json(exclude={"run", "data"}), num_rows
        if key not in known:
            joined = [batch_of(join_rows(parts)) for parts in steps]
            known[key] = train_on(alone, config, joined)
        return known[key]

    return train


@pytest.fixture
def assert_parity(pair, on_one_rank):
    """Two ranks train to the same tables, weights and losses as one, and every table moves."""

    def check(config, steps, tolerance=TOLERANCE):
        reference = on_one_rank(config, steps)
        trained = pair.run(train_share, config, steps)[0]
        assert_moved(trained)
        assert_close(trained.before.tables, reference.before.tables, 0.0)
        assert_close(trained.before.dense, reference.before.dense, 0.0)
        assert_close(trained.after.tables, reference.after.tables, tolerance)
        assert_close(trained.after.dense, reference.after.dense, tolerance)
        torch.testing.assert_close(trained.losses, reference.losses, atol=tolerance, rtol=0)

    return check


def sharded(folder, sharding, tables, dense, **sections):
    return config_of(
        folder,
        embedding={"optimizer": tables, "lr": TABLE_RATE[tables], "eps": EPSILON}
        | sections.pop("embedding", {}),
        optim={"optimizer": dense, "lr": DENSE_RATE[dense], "eps": EPSILON}
        | sections.pop("optim", {}),
        distributed={"sharding": sharding},
        **sections,
    )


@pytest.mark.parametrize(("tables", "dense"), [("sgd", "adam"), ("adagrad", "adagrad")])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_equal_one(tmp_path, assert_parity, sharding, tables, dense):
    """Plain SGD on the dense part is below; where the tables lie and it do not meet."""
    assert_parity(sharded(tmp_path, sharding, tables, dense), rows_of_steps())


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "table_row_wise", "data_parallel"])
def test_row_wise_adagrad(tmp_path, assert_parity, sharding):
    """Not column-wise: there each column shard of a row has an accumulator of its own."""
    assert_parity(sharded(tmp_path, sharding, "rowwise_adagrad", "sgd"), rows_of_steps())


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_adam_on_tables(tmp_path, assert_parity, sharding):
    assert_parity(sharded(tmp_path, sharding, "adam", "sgd"), rows_of_steps())


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise", "data_parallel"])
def test_clipping_and_decay_are_the_global_batchs(tmp_path, assert_parity, sharding):
    config = sharded(
        tmp_path,
        sharding,
        "sgd",
        "adam",
        embedding={"max_gradient": 1e-4, "weight_decay": 1e-3},
        optim={"clip_norm": 0.05, "weight_decay": 1e-2},
    )
    steps = rows_of_steps(even=True)
    assert_parity(config, steps)


@pytest.mark.parametrize(
    "model",
    [
        {"num_shared_experts": 0},
        {"num_shared_experts": 2, "num_task_experts": 2, "layers": 2},
        {"num_task_experts": 0},
        {"task_specific_features": "user"},
        {"gate_input": "task", "stop_gradient": False},
        {"expert": "nfwfm"},
        *({"name": name} for name in MODELS if name not in ("stem_net", "esmm", "aitm")),
        {"name": "mmoe", "expert": "nfwfm"},
        {"name": "ple", "num_task_experts": 2, "layers": 2},
        {"name": "esmm", "task_order": ["like", "share"]},
        {"name": "aitm", "task_order": ["like", "click", "share"]},
    ],
    ids=str,
)
def test_every_model(tmp_path, assert_parity, model):
    assert_parity(sharded(tmp_path, "row_wise", "sgd", "sgd", model=model), rows_of_steps())


def test_the_penalty_on_tables_alike_is_the_mean_of_the_ranks(tmp_path, assert_parity):
    """Covariances are of each rank's rows: with the same rows on both, those of all."""
    steps = [[part, part] for part, _ in rows_of_steps(even=True)]
    model = {"name": "me_ple", "decorrelation": 5.0}
    assert_parity(sharded(tmp_path, "row_wise", "sgd", "sgd", model=model), steps)


@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
@pytest.mark.parametrize("tables", ["sgd", "adagrad"])
def test_a_task_without_labels_trains_nothing_of_its_own(tmp_path, pair, sharding, tables):
    steps = rows_of_steps()
    for part in chain.from_iterable(steps):
        part.labels[:, 1] = np.nan
    trained = pair.run(train_share, sharded(tmp_path, sharding, tables, "sgd"), steps)[0]
    moves = largest_difference(trained.before.tables, trained.after.tables)
    silent = SCHEMA.task_names[1]
    assert {name for name, move in moves.items() if move == 0} == {
        name for name in moves if name.startswith(f"{silent}__")
    }
    assert (trained.losses[:, 1] == 0).all()


def train_tiny(ranks, config, steps, schema):
    return train_on(ranks, config, [batch_of(parts[ranks.rank], schema) for parts in steps])


@pytest.mark.parametrize("tables", ["sgd", "rowwise_adagrad"])
def test_a_table_of_fewer_rows_than_ranks(tmp_path, pair, alone, tables):
    tiny = Feature(name="tiny", kind="id", num_embeddings=1)
    schema = SCHEMA.model_copy(update={"features": (*SCHEMA.features, tiny)})
    generator = np.random.default_rng(3)
    steps = [[random_rows(generator, 8, schema) for _ in range(2)] for _ in range(3)]
    config = config_of(
        tmp_path,
        schema,
        embedding={"optimizer": tables, "lr": TABLE_RATE[tables], "eps": EPSILON},
        optim={"optimizer": "sgd"},
        distributed={"sharding": "row_wise"},
    )
    trained = pair.run(train_tiny, config, steps, schema)[0]
    reference = train_tiny(alone, config, [[join_rows(parts)] for parts in steps], schema)
    assert trained.after.tables["shared__tiny"].shape == (1, DIM)
    assert_moved(trained)
    assert_close(trained.after.tables, reference.after.tables, TOLERANCE)


def test_padding_rows_change_nothing(tmp_path, alone):
    config = sharded(tmp_path, "table_wise", "adagrad", "sgd")
    joined = [join_rows(parts) for parts in rows_of_steps()[:5]]
    plain = train_on(alone, config, [batch_of(rows) for rows in joined])
    padded = train_on(alone, config, [batch_of(rows, num_rows=24) for rows in joined])
    assert_close(padded.after.tables, plain.after.tables, 1e-6)
    assert_close(padded.after.dense, plain.after.dense, 1e-6)


@pytest.mark.parametrize("tables", ["sgd", "adagrad", "adam"])
def test_column_shards_on_one_rank(tmp_path, alone, on_one_rank, tables):
    steps = rows_of_steps()
    config = sharded(tmp_path, "column_wise", tables, "sgd")
    joined = [batch_of(join_rows(parts)) for parts in steps]
    trained, reference = train_on(alone, config, joined), on_one_rank(config, steps)
    assert_close(trained.after.tables, reference.after.tables, TOLERANCE)
    assert_close(trained.after.dense, reference.after.dense, TOLERANCE)
