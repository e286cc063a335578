"""Bad numbers: the step is left out on all ranks, before any table is touched."""

import numpy as np
import pytest
import torch

from stem_torchrec.distributed.cut import Cut
from tests.steps import batch_of, config_of, random_rows, run_steps, start

OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd", "adam")


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
    run_steps(session, [batch_of(rows)])
    skipped = session.pipeline.skipped is not None
    after = everything(session)
    changed = [
        name
        for name, value in before.items()
        if not torch.equal(value.nan_to_num(7.0), after[name].nan_to_num(7.0))
    ]
    undo()
    run_steps(session, [batch_of(good_rows(ranks.rank, 2))])
    moved = sum(not torch.equal(value, everything(session)[n]) for n, value in before.items())
    return changed, skipped, session.pipeline.skipped is None, moved / len(before)


def nothing():
    return


def nan_input_on_the_last_rank(session, rows, rank):
    if rank == session.ranks.world_size - 1:
        rows.dense[-1] = np.nan
        rows.labels[-1] = 1.0
    return nothing


def infinite_gradient_of_pooled_features(session, rows, rank):
    """Loss and dense gradients are finite; the backward brings one infinite number to a table."""
    if rank > 0:
        return nothing
    cut = session.model.module.recommender.embeddings.cut

    def spoil(module, inputs, outputs):
        for features in outputs.values():
            features.register_hook(lambda g: g.index_fill(0, torch.tensor([0]), float("inf")))

    return cut.register_forward_hook(spoil).remove


def nan_gradient_of_a_dense_weight(session, rows, rank):
    if rank > 0:
        return nothing
    weight = next(iter(session.optimizers.dense))
    return weight.register_hook(lambda g: g * float("nan")).remove


@pytest.mark.parametrize(
    ("optimizer", "spoil"),
    [
        *((optimizer, nan_input_on_the_last_rank) for optimizer in OPTIMIZERS),
        ("rowwise_adagrad", infinite_gradient_of_pooled_features),
        ("adam", infinite_gradient_of_pooled_features),
        ("rowwise_adagrad", nan_gradient_of_a_dense_weight),
    ],
)
def test_one_bad_rank_changes_nothing_anywhere(tmp_path, pair, optimizer, spoil):
    config = config_of(
        tmp_path,
        embedding={"optimizer": optimizer, "weight_decay": 0.1, "max_gradient": 1.0},
        optim={"weight_decay": 0.1},
        distributed={"sharding": "row_wise" if optimizer == "sgd" else "auto"},
    )
    for changed, skipped, went_on, moved in pair.run(bad_step, config, spoil):
        assert skipped
        assert changed == []
        assert went_on
        assert moved > 0.9


def test_data_parallel_tables_too(tmp_path, pair):
    config = config_of(tmp_path, distributed={"sharding": "data_parallel"})
    for changed, skipped, went_on, moved in pair.run(bad_step, config, nan_input_on_the_last_rank):
        assert (skipped, changed, went_on) == (True, [], True)
        assert moved > 0.9


def test_the_cut_changes_no_gradient():
    weight = torch.randn(4, 3, requires_grad=True)
    expected = torch.autograd.grad((weight * 2).square().sum(), weight)[0]
    cut = Cut()
    assert cut({"shared": weight})["shared"] is weight
    cut.active = True
    cut({"shared": weight * 2})["shared"].square().sum().backward()
    assert weight.grad is None
    cut.backward()
    torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0)
    with torch.no_grad():
        assert cut({"shared": weight})["shared"] is weight
