"""HoME against its definition, written down plainly, and what its groups of tasks mean."""

from itertools import chain

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from stem_torchrec.errors import UserError
from tests.nn.models.test_baselines import expert as perceptron
from tests.nn.models.test_every_model import TASKS, inputs_of, model_with

GROUPS = {"click": "watch", "like": "react", "share": "react"}
STREAM_OF = (1, 2, 2)
NUM_STREAMS, E, M = 3, 3, 2


def expert(of, k, x):
    low = x @ of.gate_down.weight[k] + of.gate_down.bias[k]
    gate = 2 * torch.sigmoid(low @ of.gate_up.weight[k] + of.gate_up.bias[k])
    outputs = perceptron(of.mlp, k, x * gate)
    return silu(layer_norm(outputs, outputs.shape[1:]) * of.scale[k] + of.offset[k])


def mixed(gate, place, x, terms):
    scores = perceptron(gate.mlp, place, x)
    weights = scores.softmax(dim=1) if len(terms) > 1 else scores.sigmoid()
    return sum(weights[:, [k]] * term for k, term in enumerate(terms))


def with_other_values(model):
    """Scales and offsets begin as 1 and 0, biases as 0: nothing would tell them from none."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


@pytest.mark.parametrize("num", [1, E])
def test_two_layers_of_experts(num):
    model = with_other_values(
        model_with("home", task_groups=GROUPS, num_shared_experts=num, num_task_experts=min(num, M))
    )
    own_num = min(num, M)
    pooled, dense = inputs_of(model)
    x = torch.cat([pooled["shared"], dense], dim=1)
    trunk = model.trunk
    lower = [[expert(trunk.experts, s * num + k, x) for k in range(num)] for s in range(3)]
    streams = [mixed(trunk.shared_gate, 0, x, [*chain.from_iterable(lower)])]
    streams += [mixed(trunk.group_gates, g, x, lower[0] + lower[1 + g]) for g in range(2)]
    streams = [z + mixed(trunk.self_gates, s, x, lower[s]) for s, z in enumerate(streams)]
    upper = [
        [expert(trunk.upper_experts, s * num + k, streams[s]) for k in range(num)]
        for s in range(NUM_STREAMS)
    ]
    logits = []
    for t, s in enumerate(STREAM_OF):
        own = [expert(model.experts, t * own_num + k, streams[s]) for k in range(own_num)]
        both = torch.cat([streams[0], streams[s]], dim=1)
        task = mixed(model.gates, t, both, upper[0] + upper[s] + own)
        task = task + mixed(model.self_gates, t, streams[s], own)
        logits.append(perceptron(model.towers.mlp, t, task))
    torch.testing.assert_close(model(pooled, dense), torch.cat(logits, dim=1))


def test_the_second_layers_experts_of_a_group_are_its_tasks_alone():
    model = model_with("home", task_groups=GROUPS)
    logits = model(*inputs_of(model))
    weight = model.trunk.upper_experts.mlp.last.weight
    by_expert = [
        torch.autograd.grad(logits[:, t].sum(), weight, retain_graph=True)[0].flatten(1).any(1)
        for t in range(len(TASKS))
    ]
    for reached, stream in zip(by_expert, STREAM_OF, strict=True):
        expected = [s in (0, stream) for s in range(NUM_STREAMS) for _ in range(E)]
        assert reached.tolist() == expected


def test_every_expert_gives_numbers_of_one_size():
    """However large the weights of one are: no gate has to prefer it."""
    experts = model_with("home").trunk.experts
    x = torch.randn(7, experts.gate_down.weight.shape[1])
    before = experts(x)
    with torch.no_grad():
        experts.mlp.last.weight[1] *= 100
    torch.testing.assert_close(experts(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"click": "a", "like": "a"}, "model.task_groups: share: not in both"),
        (GROUPS | {"buy": "a"}, "model.task_groups: buy: .*allowed: a group for each of click"),
        ({"click": 3}, "model.task_groups"),
    ],
)
def test_groups_are_of_all_tasks(groups, message):
    with pytest.raises(UserError, match=message):
        model_with("home", task_groups=groups)
