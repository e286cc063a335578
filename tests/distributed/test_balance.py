"""Every boundary against a float64 oracle, on one rank and on two."""

import numpy as np
import pytest
import torch

from stem_torchrec.balancing.gradients import Factored, Whole
from stem_torchrec.balancing.gram import PooledGram
from stem_torchrec.distributed.balance_parameters import ParameterBalance
from stem_torchrec.distributed.tables import local_shards
from stem_torchrec.errors import UserError
from stem_torchrec.nn.models import MODELS
from tests.distributed.balance_oracle import expected_step
from tests.support.steps import (
    assert_close,
    batch_of,
    config_of,
    gather,
    join_rows,
    largest_difference,
    random_rows,
    run_steps,
    start,
    state_of,
    take_steps,
)

BOUNDARIES = ("pooled", "experts", "parameters", "dense_parameters")
RATE = 1.0


def config(folder, rule="multi_balance", boundary="pooled", sharding="table_wise", **balance):
    return config_of(
        folder,
        balance={"rule": rule, "boundary": boundary, **balance},
        embedding={"optimizer": "sgd", "lr": RATE},
        optim={"optimizer": "sgd", "lr": RATE},
        distributed={"sharding": sharding},
    )


def two_parts(seed=0):
    """Rows of two ranks with different shares of null labels."""
    generator = np.random.default_rng(seed)
    return [random_rows(generator, 8, null_share=share) for share in (0.5, 0.1)]


def balanced_step(ranks, config, parts, num_steps=1):
    """State before and after, multipliers and balance figures of this rank. Collective."""
    session = start(config, ranks)
    before = state_of(session)
    rows = parts[ranks.rank] if ranks.world_size > 1 else join_rows(parts)
    losses = run_steps(session, [batch_of(rows)] * num_steps)
    fork = session.fork
    weights = None if fork is None else fork.multipliers.clone()
    return before, state_of(session), weights, losses


def assert_is_expected(config, parts, before, after, weights):
    expected = expected_step(config, batch_of(join_rows(parts)), before)
    torch.testing.assert_close(weights.double(), expected.multipliers, rtol=2e-5, atol=1e-6)
    moved = {name: (before.tables[name] - after.tables[name]) / RATE for name in before.tables}
    assert_close(moved, {name: g.float() for name, g in expected.tables.items()}, 1e-6)
    for name, gradient in expected.dense.items():
        key = f"recommender.{name}"
        found = (before.dense[key] - after.dense[key]) / RATE
        assert (found - gradient).abs().max() <= 2e-6, name


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", ["multi_balance", "mgda", "pcgrad"])
@pytest.mark.parametrize("specific", ["all", "user"])
def test_one_rank_equals_the_oracle(tmp_path, alone, boundary, rule, specific):
    chosen = config(tmp_path, rule, boundary)
    model = chosen.model.model_copy(update={"task_specific_features": specific})
    chosen = chosen.model_copy(update={"model": model})
    parts = two_parts()
    before, after, weights, _ = balanced_step(alone, chosen, parts)
    assert not torch.allclose(weights, torch.ones_like(weights))
    assert_is_expected(chosen, parts, before, after, weights)


OTHER_MODELS = [name for name in MODELS if name not in ("stem_net", "single_task")]
WITHOUT_EXPERTS = ("esmm", "aitm", "home")


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("name", OTHER_MODELS)
def test_every_model_with_a_shared_part_equals_the_oracle(tmp_path, alone, name, boundary):
    if name in WITHOUT_EXPERTS and boundary == "experts":
        return
    chosen = of_model(config(tmp_path, "multi_balance", boundary), name)
    parts = two_parts()
    before, after, weights, _ = balanced_step(alone, chosen, parts)
    assert not torch.allclose(weights, torch.ones_like(weights))
    assert_is_expected(chosen, parts, before, after, weights)


def of_model(config, name, **keys):
    order = {"esmm": ("click", "share"), "aitm": ("like", "click", "share")}
    keys = {"name": name, "task_order": order.get(name)} | keys
    return config.model_copy(update={"model": config.model.model_copy(update=keys)})


def test_nfwfm_experts_equal_the_oracle(tmp_path, alone):
    chosen = of_model(config(tmp_path), "mmoe", expert="nfwfm")
    parts = two_parts()
    before, after, weights, _ = balanced_step(alone, chosen, parts)
    assert_is_expected(chosen, parts, before, after, weights)


@pytest.mark.parametrize("boundary", ["pooled", "parameters"])
def test_the_penalty_on_tables_alike_is_no_tasks_and_not_balanced(tmp_path, alone, boundary):
    parts = two_parts()
    losses = []
    for weight in (0.0, 5.0):
        chosen = of_model(config(tmp_path, boundary=boundary), "me_ple", decorrelation=weight)
        before, after, weights, found = balanced_step(alone, chosen, parts)
        assert_is_expected(chosen, parts, before, after, weights)
        losses.append((found, weights))
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "boundary", "message"),
    [
        ("single_task", "pooled", "balance.rule: 'mgda'.*single_task.*allowed: equal"),
        ("aitm", "experts", "balance.boundary: 'experts'.*aitm.*allowed: pooled, parameters"),
        ("esmm", "experts", "balance.boundary: 'experts'.*esmm.*allowed: pooled, parameters"),
    ],
)
def test_a_boundary_that_the_model_lacks_is_the_users_error(
    tmp_path, alone, name, boundary, message
):
    with pytest.raises(UserError, match=message):
        start(of_model(config(tmp_path, "mgda", boundary), name), alone)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_two_ranks_equal_the_oracle_and_each_other(tmp_path, pair, boundary, sharding):
    chosen = config(tmp_path, "multi_balance", boundary, sharding)
    parts = two_parts(1)
    results = pair.run(balanced_step, chosen, parts)
    for before, after, weights, _ in results:
        assert torch.equal(weights, results[0][2]), "multipliers differ between ranks"
        assert_is_expected(chosen, parts, before, after, weights)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_features_of_different_widths_equal_the_oracle(tmp_path, pair, boundary):
    chosen = config(tmp_path, "multi_balance", boundary, "row_wise")
    dims = {"user": 32, "hour": 4}
    embedding = chosen.embedding.model_copy(update={"dims": dims})
    chosen = of_model(chosen, "me_ple", decorrelation=2.0)
    chosen = chosen.model_copy(update={"embedding": embedding})
    parts = two_parts(1)
    parts[1] = parts[0]  # covariances are of each rank's rows: with the same rows, those of all
    for before, after, weights, _ in pair.run(balanced_step, chosen, parts):
        assert not torch.allclose(weights, torch.ones_like(weights))
        assert_is_expected(chosen, parts, before, after, weights)


def without_products(ranks, config, parts):
    """A step in which making a Gram matrix, or gradients of parameters per task, fails."""
    with pytest.MonkeyPatch.context() as patched:
        for kind in (Whole, Factored):
            patched.delattr(kind, "inner_products")
        patched.delattr(PooledGram, "__call__")
        patched.delattr(ParameterBalance, "forward")
        return balanced_step(ranks, config, parts)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", ["famo", "rlw"])
def test_rule_that_reads_no_gradients_makes_no_gram_matrix(tmp_path, pair, rule, boundary):
    chosen, parts = config(tmp_path, rule, boundary), two_parts()
    results = pair.run(without_products, chosen, parts)
    for before, after, weights, _ in results:
        assert torch.equal(weights, results[0][2]), "multipliers differ between ranks"
        assert not torch.allclose(weights, weights.mean().expand(3))
        assert_is_expected(chosen, parts, before, after, weights)


def many_steps(ranks, config, parts):
    _, after, weights, losses = balanced_step(ranks, config, parts, num_steps=8)
    everyone = gather(weights, ranks)
    assert all(torch.equal(weights, other) for other in everyone)
    return after, losses


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_eight_steps_on_two_ranks_equal_one_rank(tmp_path, pair, alone, boundary):
    chosen = config(tmp_path, "multi_balance", boundary)
    rates = {"lr": 0.1}
    chosen = chosen.model_copy(
        update={
            "embedding": chosen.embedding.model_copy(update=rates),
            "optim": chosen.optim.model_copy(update=rates),
        }
    )
    parts = two_parts(2)
    after, losses = many_steps(alone, chosen, parts)
    for other, other_losses in pair.run(many_steps, chosen, parts):
        torch.testing.assert_close(losses, other_losses, rtol=1e-5, atol=1e-5)
        assert_close(after.tables, other.tables, 1e-5)
        assert_close(after.dense, other.dense, 1e-5)


def test_names_in_checkpoints_stay(tmp_path, alone):
    session = start(config(tmp_path, "multi_balance"), alone)
    names = {name for name, _ in session.fork.named_buffers()}
    assert names == {"multipliers", "state_norm_average", "state_weights", "state_steps"}
    assert set(session.fork.state_dict()) == names
    assert "recommender.model.fork.state_steps" in session.model.module.state_dict()


def test_equal_is_bit_for_bit_no_balancing(tmp_path, alone):
    parts = two_parts()
    _, plain, _, _ = balanced_step(alone, config(tmp_path / "a", "equal"), parts, 5)
    no_section = config_of(
        tmp_path / "b",
        embedding={"optimizer": "sgd", "lr": RATE},
        optim={"optimizer": "sgd", "lr": RATE},
        distributed={"sharding": "table_wise"},
    )
    _, other, _, _ = balanced_step(alone, no_section, parts, 5)
    for one, two in ((plain.tables, other.tables), (plain.dense, other.dense)):
        assert set(largest_difference(one, two).values()) == {0.0}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("rule", ["static", "multi_balance", "mgda", "pcgrad", "cagrad"])
def test_a_fused_table_steps_once_per_batch(tmp_path, alone, boundary, rule):
    """Adagrad's accumulator after one step is the square of one combined gradient."""
    extra = {"weights": [1.0, 2.0, 0.5]} if rule == "static" else {}
    sgd = config(tmp_path / "sgd", rule, boundary, **extra)
    table = sgd.embedding.model_copy(update={"optimizer": "adagrad", "eps": 1e-12})
    adagrad = sgd.model_copy(update={"embedding": table})
    parts = two_parts()
    before, after, _, _ = balanced_step(alone, sgd, parts)
    _, stepped, _, _ = balanced_step(alone, adagrad, parts)
    for name, start_values in before.tables.items():
        gradient = start_values - after.tables[name]
        seen = gradient.abs() > 1e-6
        move = start_values - stepped.tables[name]
        # One Adagrad step from nothing moves by the learning rate; a second would move further.
        torch.testing.assert_close(
            move[seen], RATE * gradient[seen].sign(), rtol=1e-3, atol=1e-3, msg=name
        )


def test_gram_rows_of_the_whole_batch_is_exact_and_fewer_is_close(tmp_path, alone):
    parts = two_parts()
    exact, all_rows, some = (
        balanced_step(alone, config(tmp_path, "mgda", gram_rows=rows), parts)[2]
        for rows in (None, 16, 12)
    )
    assert torch.equal(exact, all_rows)
    assert not torch.equal(exact, some)
    assert (some >= 0).all()


def test_nan_outside_the_rows_of_the_gram_matrix_is_seen(tmp_path, alone):
    session = start(config(tmp_path, "multi_balance", gram_rows=4), alone)
    rows = join_rows(two_parts())
    rows.dense[-1] = np.nan
    rows.labels[-1] = 1.0
    before = state_of(session)
    assert [done.skipped for done in take_steps(session, [batch_of(rows)])] == [True]
    assert (session.fork.multipliers == 1).all()
    assert_close(before.tables, state_of(session).tables, 0.0)


def test_gram_every_keeps_the_multipliers_between(tmp_path, alone):
    session = start(config(tmp_path, "multi_balance", gram_every=3), alone)
    session.recommender.train()
    batches = iter([batch_of(join_rows(two_parts(step))) for step in range(7)])
    found = []
    for step in range(7):
        session.fork.begin(step)
        session.optimizers.set_learning_rates(1.0)
        session.step(batches)
        found.append(session.fork.multipliers.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[2], found[3])
    assert torch.equal(found[3], found[5])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_task_without_labels_is_left_out(tmp_path, pair, boundary):
    parts = two_parts()
    for part in parts:
        part.labels[:, 1] = np.nan
    for before, after, weights, _ in pair.run(
        balanced_step, config(tmp_path, "multi_balance", boundary), parts
    ):
        assert weights[1] == 0
        assert (weights[[0, 2]] > 0).all()
        for name, values in before.tables.items():
            assert torch.equal(values, after.tables[name]) == name.startswith("like__")


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_nan_of_one_task_leaves_everything_as_it_was(tmp_path, alone, boundary):
    """The step is left out: tables, shared weights, the rule's state and its multipliers."""
    session = start(config(tmp_path, "multi_balance", boundary), alone)
    batch = batch_of(join_rows(two_parts()))
    run_steps(session, [batch])
    bias = session.recommender.model.towers.mlp.last.bias
    with torch.no_grad():
        bias[1] = float("nan")
    before = [value.clone() for value in kept(session)]
    assert [done.skipped for done in take_steps(session, [batch])] == [True]
    torch.testing.assert_close(list(kept(session)), before, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        bias[1] = 0.0
    assert [done.skipped for done in take_steps(session, [batch])] == [False]
    assert any(not torch.equal(a, b) for a, b in zip(kept(session), before, strict=True))


def kept(session):
    """What a step that is left out may not change, of this rank."""
    yield from (shard.values for shard in local_shards(session.model))
    yield from session.recommender.parameters()
    yield from session.fork.buffers()
