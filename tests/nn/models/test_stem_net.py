"""STEM-Net's shapes and size, and which loss reaches which tables and weights.

T tasks, F features, D embedding dimension, N dense features.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.recommender import inputs_of as inputs_of_schema
from stem_torchrec.nn import StemNet, StemNetOptions
from stem_torchrec.nn.owners import SHARED

DIM = 4
TASKS = ("click", "like", "share")
SMALL = {"expert_widths": (24, 16), "gate_widths": (8,), "tower_widths": (12,)}


def schema_with(num_tasks=3, num_dense=2):
    return Schema(
        features=(
            Feature(name="user", kind="id", side="user", num_embeddings=11),
            Feature(name="item", kind="id", side="item", num_embeddings=7),
            Feature(name="tags", kind="bag", side="item", num_embeddings=5),
            Feature(name="hour", kind="id", num_embeddings=3),
            *(Feature(name=f"dense{i}", kind="dense") for i in range(num_dense)),
        ),
        tasks=tuple(Task(name=name) for name in TASKS[:num_tasks]),
    )


def model_with(schema=None, **keys):
    torch.manual_seed(0)
    inputs = inputs_of_schema(schema or schema_with(), EmbeddingConfig(dim=DIM))
    return StemNet(inputs, StemNetOptions(**SMALL | keys))


def inputs_of(model, schema=None, batch=9):
    """Leaves for every owner's pooled features (B, F_o * D), and dense features (B, N)."""
    pooled = {
        owner: torch.randn(batch, len(names) * DIM, requires_grad=True)
        for owner, names in model.owners.items()
    }
    return pooled, torch.randn(batch, len((schema or schema_with()).dense))


def mlp_size(widths):
    return sum((i + 1) * o for i, o in pairwise(widths))


@settings(max_examples=30, deadline=None)
@given(
    num_tasks=st.integers(1, 3),
    num_dense=st.integers(0, 2),
    shared=st.integers(0, 3),
    own=st.integers(0, 2),
    layers=st.integers(1, 3),
    expert=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    gate=st.lists(st.integers(1, 5), max_size=2),
    tower=st.lists(st.integers(1, 5), max_size=2),
    gate_input=st.sampled_from(["both", "task", "shared"]),
    specific=st.sampled_from(["all", "none", "user", "item", ("hour", "user")]),
)
def test_logits_and_number_of_parameters(
    num_tasks, num_dense, shared, own, layers, expert, gate, tower, gate_input, specific
):
    if shared == 0 and (own == 0 or layers > 1):
        return
    schema = schema_with(num_tasks, num_dense)
    model = model_with(
        schema,
        num_shared_experts=shared,
        num_task_experts=own,
        layers=layers,
        expert_widths=tuple(expert),
        gate_widths=tuple(gate),
        tower_widths=tuple(tower),
        gate_input=gate_input,
        task_specific_features=specific,
    )
    pooled, dense = inputs_of(model, schema)
    logits = model(pooled, dense)
    assert logits.shape == (9, num_tasks)
    assert logits.isfinite().all()

    num_experts = shared + num_tasks * own
    expected, width = 0, 4 * DIM + num_dense
    for layer in range(layers):
        gate_width = 2 * width if gate_input == "both" else width
        expected += num_experts * mlp_size([width, *expert])
        expected += num_tasks * mlp_size([gate_width, *gate, num_experts])
        if layer < layers - 1:
            expected += mlp_size([width, *gate, num_experts])
        width = expert[-1]
    expected += num_tasks * mlp_size([width, *tower, 1])
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("wanted", "specific"),
    [
        ("all", ["user", "item", "tags", "hour"]),
        ("none", []),
        ("user", ["user"]),
        ("item", ["item", "tags"]),
        (("tags", "user"), ["user", "tags"]),
        ((), []),
    ],
)
def test_tables_of_each_owner(wanted, specific):
    schema = schema_with()
    model = model_with(task_specific_features=wanted)
    assert list(model.owners[SHARED]) == ["user", "item", "tags", "hour"]
    assert {task: list(model.owners.get(task, [])) for task in TASKS} == dict.fromkeys(
        TASKS, specific
    )
    embeddings = OwnerEmbeddings(schema, model.owners, EmbeddingConfig(dim=DIM))
    rows = {f.name: f.num_embeddings for f in schema.sparse}
    expected = sum(rows.values()) + len(TASKS) * sum(rows[name] for name in specific)
    assert sum(p.numel() for p in embeddings.parameters()) == DIM * expected


@pytest.mark.parametrize("name", ["nobody", "dense0"])
def test_an_unknown_feature_is_refused(name):
    with pytest.raises(ValueError, match=f"task_specific_features: unknown feature '{name}'.*tags"):
        model_with(task_specific_features=("user", name))


def gradients_of(model, gradient, pooled, dense):
    """Gradients of everything, by owner, from ``gradient`` (T,) or (B, T) of the logits.

    What a task owns: its pooled features and its slices of experts, gates and towers.
    """
    model.zero_grad()
    for value in pooled.values():
        value.grad = None
    logits = model(pooled, dense)
    logits.backward(gradient.expand_as(logits))
    owned = {
        owner: [value.grad if value.grad is not None else torch.zeros_like(value)]
        for owner, value in pooled.items()
    }
    for name, parameter in model.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if ".shared_experts." in name or ".shared_gate." in name:
            owned[SHARED].append(grad)
            continue
        for task, part in zip(TASKS, grad.chunk(len(TASKS)), strict=True):
            owned[task].append(part)
    return owned


def unit(task):
    gradient = torch.zeros(len(TASKS))
    gradient[TASKS.index(task)] = 1
    return gradient


ISOLATED = [
    {},
    {"gate_input": "task"},
    {"gate_input": "shared"},
    {"num_task_experts": 2, "num_shared_experts": 3},
    {"num_shared_experts": 0},
    {"num_task_experts": 0, "num_shared_experts": 2},
    {"task_specific_features": "item"},
]


@pytest.mark.parametrize("keys", ISOLATED, ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_a_loss_reaches_its_own_and_the_shared_alone(keys, task):
    model = model_with(**keys)
    pooled, dense = inputs_of(model)
    owned = gradients_of(model, unit(task), pooled, dense)
    for owner, gradients in owned.items():
        for gradient in gradients:
            if owner in (task, SHARED):
                reached = gradient.numel() == 0 or (gradient != 0).any()
                unread = (
                    model.stack.blocks[0].num_shared_experts == 0
                    and keys.get("gate_input") == "task"
                )
                assert reached or (owner == SHARED and unread)
            else:
                assert (gradient == 0).all(), f"loss of {task} reaches {owner}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("keys", ISOLATED, ids=str)
def test_a_foreign_tasks_bad_loss_stays_out(keys, bad):
    """What click owns gets the same gradient whatever like's loss does."""
    model = model_with(**keys)
    pooled, dense = inputs_of(model)
    alone = gradients_of(model, unit("click"), pooled, dense)
    gradient = unit("click") + torch.nan_to_num(bad * unit("like"), nan=0.0)
    gradient[TASKS.index("like")] = bad
    owned = gradients_of(model, gradient, pooled, dense)
    for task in ("click", "share"):
        for one, other in zip(alone[task], owned[task], strict=True):
            torch.testing.assert_close(other, one, atol=0, rtol=0)
    assert any(g.isnan().any() for g in owned["like"])


def test_a_foreign_tasks_bad_tower_stays_out():
    model = model_with()
    pooled, dense = inputs_of(model)
    alone = gradients_of(model, unit("click"), pooled, dense)
    with torch.no_grad():
        model.towers.mlp.last.bias[TASKS.index("like")] = float("nan")
    logits = model(pooled, dense)
    assert logits.isnan().any(dim=0).tolist() == [False, True, False]
    owned = gradients_of(model, torch.ones(len(TASKS)), pooled, dense)
    for one, other in zip(alone["click"], owned["click"], strict=True):
        torch.testing.assert_close(other, one, atol=0, rtol=0)


@pytest.mark.parametrize("task", TASKS)
def test_without_the_stop_gradient_every_loss_reaches_every_table_and_expert(task):
    model = model_with(stop_gradient=False)
    pooled, dense = inputs_of(model)
    owned = gradients_of(model, unit(task), pooled, dense)
    assert all((gradients[0] != 0).any() for gradients in owned.values())
    experts = model.stack.blocks[0].task_experts.hidden[0].weight.grad
    assert (experts != 0).flatten(1).any(dim=1).all()
    # Gates and towers are a task's own all the same.
    for layers in (model.stack.blocks[0].gates, model.towers):
        for name, parameter in layers.named_parameters():
            reached = (parameter.grad != 0).flatten(1).any(dim=1).tolist()
            assert [t for t, r in zip(TASKS, reached, strict=True) if r] == [task], name


def test_the_stop_gradient_changes_no_logit():
    one, other = model_with(), model_with(stop_gradient=False)
    pooled, dense = inputs_of(one)
    torch.testing.assert_close(one(pooled, dense), other(pooled, dense), atol=0, rtol=0)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_stacked_block_trains_all_of_it(layers):
    model = model_with(layers=layers)
    pooled, dense = inputs_of(model)
    owned = gradients_of(model, torch.ones(len(TASKS)), pooled, dense)
    for owner, gradients in owned.items():
        assert all((gradient != 0).any() for gradient in gradients), owner


def test_every_task_reads_every_expert():
    """Foreign experts count in the forward: all features of all owners move a task's logit."""
    model = model_with(stop_gradient=False)
    pooled, dense = inputs_of(model)
    before = model(pooled, dense)
    for owner in pooled:
        changed = pooled | {owner: pooled[owner] + 1}
        assert ((model(changed, dense) - before).abs().max(dim=0).values > 0).all(), owner


def test_dense_features_reach_every_task():
    model = model_with()
    pooled, dense = inputs_of(model)
    change = (model(pooled, dense + 1) - model(pooled, dense)).abs().max(dim=0).values
    assert (change > 0).all()


def test_dropout_is_off_in_evaluation():
    model = model_with(dropout=0.5)
    pooled, dense = inputs_of(model)
    assert not torch.equal(model(pooled, dense), model(pooled, dense))
    model.eval()
    assert torch.equal(model(pooled, dense), model(pooled, dense))
