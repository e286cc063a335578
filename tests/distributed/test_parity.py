"""Training on two ranks equals training on one with the joined batches, however tables lie."""

import numpy as np
import pytest
import torch
from steps import (
    SCHEMA,
    assert_close,
    assert_moved,
    batch_of,
    config_of,
    join_rows,
    random_rows,
    train_on,
)

TOLERANCE = 1e-5
NUM_STEPS = 20
SHARDINGS = ("table_wise", "column_wise", "row_wise", "table_row_wise", "data_parallel")
# Rates at which 20 steps move every table by far more than the tolerance.
TABLE_RATE = {"sgd": 5.0, "adagrad": 0.2, "rowwise_adagrad": 0.2, "adam": 0.02}


def rows_of_steps():
    """Rows per step and rank: different nulls, a smaller batch, a batch of padding alone."""
    generator = np.random.default_rng(7)
    steps = []
    for step in range(NUM_STEPS):
        sizes = {5: (8, 3), NUM_STEPS - 1: (6, 0)}.get(step, (8, 8))
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


def train_share(ranks, config):
    """This rank's training, on its share of the rows."""
    torch.manual_seed(100 + ranks.rank)  # the seed of the config must be the one that counts
    return train_on(ranks, config, share_of(rows_of_steps(), ranks.rank))


@pytest.fixture(scope="module")
def on_one_rank(alone):
    """Training on one rank with the joined rows, computed once per config."""
    known = {}

    def train(config):
        config = config.model_copy(
            update={"distributed": config.distributed.model_copy(update={"sharding": "table_wise"})}
        )
        key = config.model_dump_json(include={"embedding", "optim", "model"})
        if key not in known:
            joined = [batch_of(join_rows(parts)) for parts in rows_of_steps()]
            known[key] = train_on(alone, config, joined)
        return known[key]

    return train


def parity_of(pair, on_one_rank, config):
    """The distances of two ranks' training from one rank's; asserts what always holds."""
    reference = on_one_rank(config)
    trained = pair.run(train_share, config)[0]
    assert_moved(trained)
    assert_close(trained.before.tables, reference.before.tables, 0.0)
    assert_close(trained.before.dense, reference.before.dense, 0.0)
    assert_close(trained.after.tables, reference.after.tables, TOLERANCE)
    assert_close(trained.after.dense, reference.after.dense, TOLERANCE)
    torch.testing.assert_close(trained.losses, reference.losses, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dense", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("tables", ["sgd", "adagrad"])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_equal_one(tmp_path, pair, on_one_rank, sharding, tables, dense):
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "lr": TABLE_RATE[tables]},
        optim={"optimizer": dense},
        distributed={"sharding": sharding},
    )
    parity_of(pair, on_one_rank, config)
