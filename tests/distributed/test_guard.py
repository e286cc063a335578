"""Bad numbers: the step is left out on all ranks, before any table is touched."""

import numpy as np
import pytest
import torch

from stem_torchrec.distributed import forward_backward, guarded_optimizer
from stem_torchrec.nn.losses import labelled, task_losses
from tests.support.steps import batch_of, config_of, random_rows, run_steps, start, take_steps

# Of tables and dense weights.
OPTIMIZERS = (
    *(("rowwise_adagrad", "adam"), ("adagrad", "adagrad")),
    *(("sgd", "sgd"), ("adam", "adamw")),
)


def everything(session):
    """Tables, dense weights and optimizer states of this rank, by name."""
    state = {"model": session.model.state_dict(), "optimizers": session.optimizers.state_dict()}
    found = {}

    def walk(name, value):
        if isinstance(value, dict):
            for key, part in value.items():
                walk(f"{name}/{key}", part)
        elif hasattr(value, "local_shards"):
            for number, shard in enumerate(value.local_shards()):
                found[f"{name}#{number}"] = shard.tensor.detach().clone()
        elif isinstance(value, torch.Tensor):
            found[name] = value.detach().clone()

    walk("", state)
    return found


def good_rows(rank, step):
    return random_rows(np.random.default_rng(10 * step + rank), 8)


def bad_step(ranks, config, spoil):
    """What changed in a bad step between good ones, by name, and whether it was left out."""
    session = start(config, ranks)
    run_steps(session, [batch_of(good_rows(ranks.rank, 0))])
    before = everything(session)
    rows = good_rows(ranks.rank, 1)
    undo = spoil(session, rows, ranks.rank)
    (bad,) = take_steps(session, [batch_of(rows)])
    after = everything(session)
    changed = [
        name
        for name, value in before.items()
        if not torch.equal(value.nan_to_num(7.0), after[name].nan_to_num(7.0))
    ]
    undo()
    (good,) = take_steps(session, [batch_of(good_rows(ranks.rank, 2))])
    moved = sum(not torch.equal(value, everything(session)[n]) for n, value in before.items())
    return changed, bool(bad.skipped), not good.skipped, moved / len(before)


def nothing():
    return


def nan_input_where_the_host_decides(session, rows, rank):
    """As with fused Adam, which a CPU does not have."""
    session.optimizers.need_gradients = True
    return nan_input_on_the_last_rank(session, rows, rank)


def nan_input_on_the_last_rank(session, rows, rank):
    if rank == session.ranks.world_size - 1:
        rows.dense[-1] = np.nan
        rows.labels[-1] = 1.0
    return nothing


def infinite_gradient_of_pooled_features(session, rows, rank):
    """Loss and dense gradients are finite; the backward brings one infinite number to a table."""
    if rank > 0:
        return nothing

    def spoil(module, inputs):
        for features in inputs[0].values():
            features.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), float("inf")))

    return session.recommender.model.register_forward_pre_hook(spoil).remove


def nan_gradient_of_a_dense_weight(session, rows, rank):
    if rank > 0:
        return nothing
    weight = next(iter(session.optimizers.dense))
    return weight.register_hook(lambda g: g * float("nan")).remove


@pytest.mark.parametrize(
    ("optimizers", "spoil"),
    [
        *((optimizers, nan_input_on_the_last_rank) for optimizers in OPTIMIZERS),
        (OPTIMIZERS[0], infinite_gradient_of_pooled_features),
        (OPTIMIZERS[3], infinite_gradient_of_pooled_features),
        (OPTIMIZERS[0], nan_gradient_of_a_dense_weight),
        (OPTIMIZERS[1], nan_gradient_of_a_dense_weight),
        (OPTIMIZERS[0], nan_input_where_the_host_decides),
    ],
)
def test_one_bad_rank_changes_nothing_anywhere(tmp_path, pair, optimizers, spoil):
    tables, dense = optimizers
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "weight_decay": 0.1, "max_gradient": 1.0},
        optim={"optimizer": dense, "weight_decay": 0.1, "clip_norm": 1.0},
        distributed={"sharding": "row_wise" if tables == "sgd" else "auto"},
    )
    for changed, skipped, went_on, moved in pair.run(bad_step, config, spoil):
        assert skipped
        assert changed == []
        assert went_on
        assert moved > 0.9


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "sgd"])
def test_data_parallel_tables_too(tmp_path, pair, tables):
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "weight_decay": 0.1},
        distributed={"sharding": "data_parallel"},
    )
    for changed, skipped, went_on, moved in pair.run(bad_step, config, nan_input_on_the_last_rank):
        assert (skipped, changed, went_on) == (True, [], True)
        assert moved > 0.9


@pytest.mark.parametrize(
    ("embedding", "expected"),
    [
        ({"optimizer": "rowwise_adagrad"}, False),
        ({"optimizer": "adagrad", "eps": 0.0}, True),
        ({"optimizer": "sgd", "eps": 0.0}, False),
        ({"optimizer": "adam"}, False),  # on a CPU it is not fused
    ],
)
def test_which_fused_optimizers_a_gradient_of_zero_moves(tmp_path, alone, embedding, expected):
    session = start(config_of(tmp_path, embedding=embedding), alone)
    assert session.optimizers.need_gradients is expected


@pytest.mark.parametrize("optimizers", OPTIMIZERS)
def test_a_verdict_that_the_host_does_not_know_changes_no_number(
    tmp_path, alone, optimizers, monkeypatch
):
    """As on a GPU: steps that are not left out go through all that could leave them out."""
    tables, dense = optimizers
    config = config_of(
        tmp_path,
        embedding={"optimizer": tables, "weight_decay": 0.1},
        optim={"optimizer": dense, "weight_decay": 0.1, "clip_norm": 1.0},
    )
    found = []
    for module in (None, forward_backward, guarded_optimizer):
        if module is not None:
            monkeypatch.setattr(module, "known_unset", lambda flag: False)
        session = start(config, alone)
        run_steps(session, [batch_of(good_rows(0, step)) for step in range(3)])
        found.append(everything(session))
    for name, value in found[0].items():
        assert all(torch.equal(value, other[name]) for other in found[1:]), name


def test_the_dense_step_reaches_no_table(tmp_path, alone):
    """Its gradients are those of one backward through everything."""
    session = start(config_of(tmp_path), alone)
    batch = batch_of(good_rows(0, 0))
    pooled = session.recommender.embeddings(batch.sparse)
    before = everything(session)
    dense = session.step._gradients.dense_step(pooled, batch)
    assert all(torch.equal(value, everything(session)[name]) for name, value in before.items())
    target = labelled(batch.labels, batch.weights)
    whole = session.recommender.model(pooled, batch.dense)
    losses = task_losses(whole, target, target.weights.sum(dim=0))
    weights = list(session.recommender.model.parameters())
    expected = torch.autograd.grad(losses.sum(), [*pooled.values(), *weights])
    found = [*dense.pooled.values(), *dense.weights]
    torch.testing.assert_close(found, list(expected), rtol=0, atol=0)
    torch.testing.assert_close(dense.losses, losses.detach(), rtol=0, atol=0)
