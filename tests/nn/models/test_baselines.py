"""The compared models against their definitions, written down plainly."""

import pytest
import torch

from stem_torchrec.nn.models.esmm import product_logit
from tests.nn.models.test_every_model import DIM, TASKS, inputs_of, model_with


def expert(batched, k, x):
    for layer in batched.hidden:
        x = (x @ layer.weight[k] + layer.bias[k]).relu()
    return x if batched.last is None else x @ batched.last.weight[k] + batched.last.bias[k]


def joined(pooled, owner, dense):
    return torch.cat([pooled[owner], dense], dim=1)


def test_shared_bottom():
    model = model_with("shared_bottom")
    pooled, dense = inputs_of(model)
    bottom = expert(model.bottom, 0, joined(pooled, "shared", dense))
    expected = [expert(model.towers.mlp, t, bottom) for t in range(3)]
    torch.testing.assert_close(model(pooled, dense), torch.cat(expected, dim=1))


def test_single_task():
    model = model_with("single_task")
    pooled, dense = inputs_of(model)
    expected = [
        expert(model.towers.mlp, t, expert(model.experts, t, joined(pooled, task, dense)))
        for t, task in enumerate(TASKS)
    ]
    torch.testing.assert_close(model(pooled, dense), torch.cat(expected, dim=1))


@pytest.mark.parametrize("name", ["omoe", "mmoe", "me_mmoe"])
def test_mixtures(name):
    model = model_with(name)
    pooled, dense = inputs_of(model)
    x = torch.cat([*pooled.values(), dense], dim=1)
    if name == "omoe":
        experts, gates = model.mixture.experts, [model.mixture.gate.mlp] * 3
        inputs = [x] * 3
    elif name == "mmoe":
        experts, gates, inputs = model.experts, [model.gates.mlp] * 3, [x] * 3
    else:
        experts, gates = model.experts.experts, [model.gates.mlp] * 3
        inputs = [joined(pooled, f"expert_{k}", dense) for k in range(3)]
    outputs = [expert(experts, k, inputs[k]) for k in range(3)]
    logits = []
    for t in range(3):
        weights = expert(gates[t], 0 if name == "omoe" else t, x).softmax(dim=1)
        mixed = sum(weights[:, k : k + 1] * outputs[k] for k in range(3))
        logits.append(expert(model.towers.mlp, t, mixed))
    torch.testing.assert_close(model(pooled, dense), torch.cat(logits, dim=1))


@pytest.mark.parametrize("name", ["ple", "me_ple"])
@pytest.mark.parametrize("layers", [1, 2])
def test_progressive_extraction(name, layers):
    model = model_with(name, layers=layers)
    pooled, dense = inputs_of(model)
    shared = joined(pooled, "shared", dense)
    streams = [joined(pooled, t if name == "me_ple" else "shared", dense) for t in TASKS]
    for block in model.stack.blocks:
        of_shared = [expert(block.shared_experts, k, shared) for k in range(3)]
        own = [
            [expert(block.task_experts, 2 * t + k, streams[t]) for k in range(2)] for t in range(3)
        ]
        mixed = []
        for t in range(3):
            weights = expert(block.gates.mlp, t, streams[t]).softmax(dim=1)
            mixed.append(sum(weights[:, [k]] * h for k, h in enumerate([*of_shared, *own[t]])))
        if block.shared_gate is not None:
            weights = expert(block.shared_gate.mlp, 0, shared).softmax(dim=1)
            everything = [*of_shared, *own[0], *own[1], *own[2]]
            shared = sum(weights[:, [k]] * h for k, h in enumerate(everything))
        streams = mixed
    expected = [expert(model.towers.mlp, t, streams[t]) for t in range(3)]
    torch.testing.assert_close(model(pooled, dense), torch.cat(expected, dim=1))


def test_esmm_is_a_product_of_probabilities():
    model = model_with("esmm")  # like, then share; click apart
    pooled, dense = inputs_of(model)
    x = joined(pooled, "shared", dense)
    like = expert(model.first_network, 0, x)
    click, share = (expert(model.networks, k, x) for k in range(2))
    expected = torch.cat([click.sigmoid(), like.sigmoid(), like.sigmoid() * share.sigmoid()], 1)
    torch.testing.assert_close(model(pooled, dense).sigmoid(), expected)


def test_the_logit_of_a_product_is_right_and_finite_everywhere():
    values = torch.tensor([-300.0, -80, -20, -3, 0, 3, 20, 80, 300])
    one, other = torch.meshgrid(values, values, indexing="ij")
    one.requires_grad_()
    logit = product_logit(one, other)
    assert logit.isfinite().all()
    logit.sum().backward()
    assert one.grad.isfinite().all()
    small = (one.abs() < 25) & (other.abs() < 25)
    exact = torch.special.expit(one.double()) * torch.special.expit(other.double())
    expected = exact.log() - torch.log1p(-exact)
    close = small & (exact < 1 - 1e-7)
    torch.testing.assert_close(logit[close].double(), expected[close], rtol=1e-4, atol=1e-4)


def test_aitm_takes_over_the_state_before():
    model = model_with("aitm")  # like, click, share
    pooled, dense = inputs_of(model)
    x = joined(pooled, "shared", dense)

    def transfer(module, previous, own):
        u = [module.transferred(previous).relu(), own]
        scores = [(module.query(v) * module.key(v)).sum(1) / own.shape[1] ** 0.5 for v in u]
        weights = torch.stack(scores, 1).softmax(1)
        return sum(weights[:, [k]] * module.value(v) for k, v in enumerate(u))

    like = expert(model.chain.towers, 0, x)
    click = transfer(model.chain.transfers[0], like, expert(model.chain.towers, 1, x))
    share = transfer(model.last_transfer, click, expert(model.last_tower, 0, x))
    heads = [expert(model.heads, k, state) for k, state in enumerate((like, click, share))]
    expected = torch.cat([heads[1], heads[0], heads[2]], dim=1)
    torch.testing.assert_close(model(pooled, dense), expected)


def test_nfwfm_sums_weighted_pairs():
    model = model_with("shared_bottom", expert="nfwfm")
    with torch.no_grad():
        model.bottom.pair_weights.uniform_(-1, 1)
    pooled, dense = inputs_of(model)
    fields = pooled["shared"].view(-1, 4, DIM)
    pairs, weights = 0, iter(model.bottom.pair_weights[0])
    for i in range(4):
        for j in range(i + 1, 4):
            pairs = pairs + next(weights) * fields[:, i] * fields[:, j]
    bottom = expert(model.bottom.mlp, 0, torch.cat([pairs, dense], dim=1))
    expected = [expert(model.towers.mlp, t, bottom) for t in range(3)]
    torch.testing.assert_close(model(pooled, dense), torch.cat(expected, dim=1))
