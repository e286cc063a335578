"""The learning-rate schedule, and that optimizers do with it what they say."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.config import OptimConfig
from stem_torchrec.distributed.optimizers import Optimizers, fused_kernels, learning_rate_factor
from tests.support.steps import (
    assert_close,
    batch_of,
    config_of,
    largest_difference,
    random_rows,
    run_steps,
    start,
    state_of,
)


def factors(total, **keys):
    config = OptimConfig(**keys)
    return [learning_rate_factor(config, step, total) for step in range(total + 1)]


def test_warm_up_rises_to_the_peak_and_stays():
    assert factors(8, warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


def test_no_warm_up_starts_at_the_peak():
    assert factors(2) == [1, 1, 1]


def test_linear_decay_ends_at_the_last_step():
    assert factors(4, decay="linear") == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_linear_decay_to_a_ratio_after_warm_up():
    found = factors(6, decay="linear", warmup_steps=2, decay_steps=4, final_lr_ratio=0.2)
    assert found == pytest.approx([0.5, 1, 1, 0.6, 0.2, 0.2, 0.2])


def test_cosine_decay():
    found = factors(4, decay="cosine", final_lr_ratio=0.1)
    half = (1 + math.cos(math.pi / 4)) / 2
    expected = [1, 0.1 + 0.9 * half, 0.55, 0.1 + 0.9 * (1 - half), 0.1]
    assert found == pytest.approx(expected)


@given(
    warmup=st.integers(0, 10),
    decay=st.sampled_from(["none", "linear", "cosine"]),
    decay_steps=st.none() | st.integers(1, 40),
    ratio=st.floats(0, 1),
    total=st.integers(1, 40),
)
def test_factors_rise_then_fall_within_their_bounds(warmup, decay, decay_steps, ratio, total):
    found = factors(
        total,
        warmup_steps=warmup,
        decay=decay,
        decay_steps=decay_steps,
        final_lr_ratio=ratio,
    )
    assert all(0 < f <= 1 for f in found[:warmup])
    assert found[:warmup] == sorted(found[:warmup])
    rest = found[warmup:]
    assert all(ratio - 1e-12 <= f <= 1 for f in rest)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(rest))


def rows(seed=0):
    return random_rows(np.random.default_rng(seed), 16)


def moves_of_one_step(alone, config, factor):
    """Changes of every table and weight in one step at ``factor`` of the peak rates."""
    session = start(config, alone)
    before = state_of(session)
    rates = session.optimizers.set_learning_rates(factor)
    assert rates == pytest.approx(
        {"dense": config.optim.lr * factor, "embedding": config.embedding.lr * factor}
    )
    session.recommender.train()
    session.step(iter([batch_of(rows())]))
    after = state_of(session)
    moved = {name: after.tables[name] - before.tables[name] for name in before.tables}
    return moved | {name: after.dense[name] - before.dense[name] for name in before.dense}


TABLES = ["sgd", "adagrad", "rowwise_adagrad", "adam"]


@pytest.mark.parametrize("dense", ["sgd", "adagrad", "adam", "adamw"])
@pytest.mark.parametrize("tables", TABLES)
def test_a_step_is_as_long_as_the_learning_rate_says(tmp_path, alone, tables, dense):
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables},
        optim={"optimizer": dense},
        distributed={"sharding": "table_wise"},
    )
    whole, half = (moves_of_one_step(alone, config, factor) for factor in (1.0, 0.5))
    assert_close({name: move / 2 for name, move in whole.items()}, half, 1e-6)
    assert all((move != 0).any() for move in whole.values())


@pytest.mark.parametrize("sharding", ["table_wise", "data_parallel"])
def test_rates_change_between_steps(tmp_path, alone, sharding):
    """A rate of 0 stops tables and weights, fused or not, and a later one moves them again."""
    config = config_of(
        tmp_path,
        embedding={"optimizer": "sgd"},
        optim={"optimizer": "sgd"},
        distributed={"sharding": sharding},
    )
    session = start(config, alone)
    session.recommender.train()
    stream = iter([batch_of(rows(seed)) for seed in range(3)])
    states = [state_of(session)]
    for factor in (1.0, 0.0, 1.0):
        session.optimizers.set_learning_rates(factor)
        session.step(stream)
        states.append(state_of(session))
    moved = [
        {**largest_difference(a.tables, b.tables), **largest_difference(a.dense, b.dense)}
        for a, b in pairwise(states)
    ]
    assert min(moved[0].values()) > 0
    assert max(moved[1].values()) == 0
    assert min(moved[2].values()) > 0


@pytest.mark.parametrize("tables", TABLES)
def test_a_batch_is_one_step_on_a_table(tmp_path, alone, tables):
    """All three tasks read the shared tables; a step each would move Adagrad's rows further."""
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "lr": 0.1, "eps": 1e-8},
        distributed={"sharding": "table_wise"},
    )
    moved = moves_of_one_step(alone, config, 1.0)
    if tables in ("adagrad", "adam"):
        # The first step of both is the learning rate times the sign of the gradient.
        for name, move in moved.items():
            if name.startswith("shared__"):
                assert move.abs().max() == pytest.approx(0.1, rel=1e-3)
    if tables == "rowwise_adagrad":
        # The root of the mean square over a row of its first step is the learning rate.
        for name, move in moved.items():
            if name.startswith("shared__"):
                lengths = move.square().mean(1).sqrt()
                assert lengths[lengths > 0] == pytest.approx(0.1, rel=1e-3)


def test_clip_norm_bounds_the_dense_gradient_alone(tmp_path, alone):
    def moves(**optim):
        config = config_of(
            tmp_path,
            embedding={"optimizer": "sgd"},
            optim={"optimizer": "sgd", "lr": 1.0, **optim},
            distributed={"sharding": "table_wise"},
        )
        return moves_of_one_step(alone, config, 1.0)

    free, bound, loose = moves(), moves(clip_norm=0.01), moves(clip_norm=1e3)
    dense = [name for name in free if name.startswith("recommender.model.")]
    norm = torch.cat([free[name].ravel() for name in dense]).norm()
    assert norm > 0.1
    assert_close({n: free[n] * (0.01 / norm) for n in dense}, {n: bound[n] for n in dense}, 1e-6)
    tables = [name for name in free if name not in dense]
    assert_close({n: free[n] for n in tables}, {n: bound[n] for n in tables}, 0.0)
    assert_close(free, loose, 0.0)


def test_dense_weight_decay_leaves_tables_alone(tmp_path, alone):
    def moves(decay):
        config = config_of(
            tmp_path,
            embedding={"optimizer": "sgd"},
            optim={"optimizer": "sgd", "weight_decay": decay},
            distributed={"sharding": "data_parallel"},
        )
        return moves_of_one_step(alone, config, 1.0)

    plain, decayed = moves(0.0), moves(0.5)
    for name in plain:
        is_dense = name.startswith("recommender.model.")
        assert torch.equal(plain[name], decayed[name]) != is_dense


def test_rows_that_no_batch_reads_stay(tmp_path, alone):
    """With every optimizer but Adam on CPU, which is dense and yet starts without momentum."""
    for tables in TABLES:
        config = config_of(
            tmp_path,
            embedding={"optimizer": tables},
            distributed={"sharding": "table_wise"},
        )
        session = start(config, alone)
        before = state_of(session)
        run_steps(session, [batch_of(rows())])
        after = state_of(session)
        read = {i for bag in rows().ids["user"] for i in bag}
        moved = (after.tables["shared__user"] != before.tables["shared__user"]).any(1)
        assert set(moved.nonzero().ravel().tolist()) == read


def test_adams_bias_is_corrected_by_the_steps_that_were_applied(tmp_path, alone):
    """The kernels count by themselves what they look up, in an evaluation or a skipped step too."""
    config = config_of(tmp_path)
    session = start(config, alone)
    rows = random_rows(np.random.default_rng(1), 8)
    run_steps(session, [batch_of(rows)] * 2)
    session.model.eval()
    list(session.step.predict(iter([batch_of(rows)])))
    kernels = list(fused_kernels(session.model))
    assert kernels
    assert all(int(kernel.iter_cpu) == 3 for kernel in kernels)
    adam = config.embedding.model_copy(update={"optimizer": "adam"})
    optimizers = Optimizers(config.model_copy(update={"embedding": adam}), session.model)
    optimizers.set_applied_steps(2)
    assert all(int(kernel.iter_cpu) == int(kernel.iter) == 2 for kernel in kernels)
