"""What holds for all models: shapes, sizes, and whose loss reaches what.

T tasks, F features, D embedding dimension, N dense features.
"""

from itertools import pairwise

import pytest
import torch

from stem_torchrec.config import Config, EmbeddingConfig, build_model
from stem_torchrec.config.reading import validate
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.recommender import inputs_of as inputs_of_schema
from stem_torchrec.errors import UserError
from stem_torchrec.nn.models import MODELS
from stem_torchrec.nn.owners import SHARED

DIM, B = 4, 9
TASKS = ("click", "like", "share")
F, N, T = 4, 2, len(TASKS)
SMALL = {
    "expert_widths": (24, 16),
    "gate_widths": (8,),
    "tower_widths": (12,),
    "num_shared_experts": 3,
    "num_task_experts": 2,
    "task_order": None,
}
ORDERS = {"esmm": ("like", "share"), "aitm": ("like", "click", "share")}
SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", side="user", num_embeddings=11),
        Feature(name="item", kind="id", side="item", num_embeddings=7),
        Feature(name="tags", kind="bag", side="item", num_embeddings=5),
        Feature(name="hour", kind="id", num_embeddings=3),
        *(Feature(name=f"dense{i}", kind="dense") for i in range(N)),
    ),
    tasks=tuple(Task(name=name) for name in TASKS),
)
ROWS = 11 + 7 + 5 + 3


def model_with(name, schema=SCHEMA, **keys):
    torch.manual_seed(0)
    keys = SMALL | {"task_order": ORDERS.get(name)} | keys
    content = {"run": {"dir": "run"}, "data": {"path": "data"}, "model": {"name": name, **keys}}
    return build_model(validate(content).model, inputs_of_schema(schema, EmbeddingConfig(dim=DIM)))


def inputs_of(model, schema=SCHEMA):
    """Leaves for every owner's pooled features (B, F_o * D), and dense features (B, N)."""
    pooled = {
        owner: torch.randn(B, len(names) * DIM, requires_grad=True)
        for owner, names in model.owners.items()
    }
    return pooled, torch.randn(B, len(schema.dense))


def mlp(*widths):
    """Weights and biases of a perceptron."""
    return sum((i + 1) * o for i, o in pairwise(widths))


INPUT = F * DIM + N
EXPERT, HIDDEN = (24, 16), 16
TOWERS = T * mlp(HIDDEN, 12, 1)
DEEP = mlp(INPUT, *EXPERT, 12)
TRANSFER = mlp(12, 12) * 4


def home_size(shared, own):
    """HoME's weights with one group of tasks, feature gates of rank 16 and two streams."""

    def expert(width):
        rank = min(16, width)
        return mlp(width, rank) + mlp(rank, width) + mlp(width, *EXPERT) + 2 * HIDDEN

    trunk = 2 * shared * (expert(INPUT) + expert(HIDDEN))
    gates_of_streams = 2 * (mlp(INPUT, 8, 2 * shared) + mlp(INPUT, 8, shared))
    gates = T * (mlp(2 * HIDDEN, 8, 2 * shared + own) + mlp(HIDDEN, 8, own))
    return trunk + gates_of_streams + T * own * expert(HIDDEN) + gates + TOWERS


CLOSED_FORM = {
    "single_task": T * mlp(INPUT, *EXPERT) + TOWERS,
    "shared_bottom": mlp(INPUT, *EXPERT) + TOWERS,
    "omoe": 3 * mlp(INPUT, *EXPERT) + mlp(INPUT, 8, 3) + TOWERS,
    "mmoe": 3 * mlp(INPUT, *EXPERT) + T * mlp(INPUT, 8, 3) + TOWERS,
    "ple": (3 + 2 * T) * mlp(INPUT, *EXPERT) + T * mlp(INPUT, 8, 5) + TOWERS,
    "esmm": T * mlp(INPUT, *EXPERT, 12, 1),
    "aitm": T * (DEEP + mlp(12, 1)) + (T - 1) * TRANSFER,
    "home": home_size(shared=3, own=2),
    "me_mmoe": 3 * mlp(INPUT, *EXPERT) + T * mlp(3 * F * DIM + N, 8, 3) + TOWERS,
    "me_ple": (3 + 2 * T) * mlp(INPUT, *EXPERT) + T * mlp(INPUT, 8, 5) + TOWERS,
    "stem_net": (3 + 2 * T) * mlp(INPUT, *EXPERT) + T * mlp(2 * INPUT, 8, 9) + TOWERS,
}
TABLE_SETS = dict.fromkeys(MODELS, 1) | {
    "single_task": T,
    "me_mmoe": 3,
    "me_ple": 1 + T,
    "stem_net": 1 + T,
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_size(name):
    model = model_with(name)
    logits = model(*inputs_of(model))
    assert logits.shape == (B, T)
    assert logits.isfinite().all()
    assert sum(p.numel() for p in model.parameters()) == CLOSED_FORM[name]
    embeddings = OwnerEmbeddings(SCHEMA, model.owners, EmbeddingConfig(dim=DIM))
    assert sum(p.numel() for p in embeddings.parameters()) == TABLE_SETS[name] * ROWS * DIM


@pytest.mark.parametrize("name", ["single_task", "shared_bottom", "mmoe", "ple", "stem_net"])
def test_size_of_nfwfm_experts(name):
    kinds = {"single_task": T, "shared_bottom": 1, "mmoe": 3, "ple": 3 + 2 * T, "stem_net": 9}
    difference = F * (F - 1) // 2 + mlp(DIM + N, *EXPERT) - mlp(INPUT, *EXPERT)
    model = model_with(name, expert="nfwfm")
    expected = CLOSED_FORM[name] + kinds[name] * difference
    assert sum(p.numel() for p in model.parameters()) == expected
    assert model(*inputs_of(model)).shape == (B, T)


@pytest.mark.parametrize("name", MODELS)
def test_without_dense_features_and_with_one_task_less(name):
    schema = SCHEMA.select(features=["user", "item"], tasks=["share", "like"])
    model = model_with(name, schema, task_order=("like", "share") if name in ORDERS else None)
    assert model(*inputs_of(model, schema)).shape == (B, 2)


# Which losses reach what; what is not named here, none reaches. Tables by owner, parts by name:
# a tuple has one set of tasks per slice of the first dimension.
ALL, EACH = {0, 1, 2}, ({0}, {1}, {2})
BY_EXPERT = ({0}, {0}, {1}, {1}, {2}, {2})
OWN_TABLES = {task: {t} for t, task in enumerate(TASKS)}
MATRIX = {
    "single_task": (OWN_TABLES, {"experts": EACH, "towers": EACH}),
    "shared_bottom": ({SHARED: ALL}, {"bottom": ALL, "towers": EACH}),
    "omoe": ({SHARED: ALL}, {"mixture": ALL, "towers": EACH}),
    "mmoe": ({SHARED: ALL}, {"experts": ALL, "gates": EACH, "towers": EACH}),
    "ple": (
        {SHARED: ALL},
        {
            "stack.blocks.0.shared_experts": ALL,
            "stack.blocks.0.task_experts": BY_EXPERT,
            "stack.blocks.0.gates": EACH,
            "towers": EACH,
        },
    ),
    # like, then share: share's loss trains like's network too.
    "esmm": ({SHARED: ALL}, {"first_network": {1, 2}, "networks": ({0}, {2})}),
    # like, click, share.
    "aitm": (
        {SHARED: ALL},
        {
            "chain.towers": (ALL, {0, 2}),
            "chain.transfers": {0, 2},
            "last_tower": {2},
            "last_transfer": {2},
            "heads": ({1}, {0}, {2}),
        },
    ),
    "home": (
        {SHARED: ALL},
        {
            "trunk": ALL,
            "experts": BY_EXPERT,
            "gates": EACH,
            "self_gates": EACH,
            "towers": EACH,
        },
    ),
    "me_mmoe": (
        {f"expert_{k}": ALL for k in range(3)},
        {"experts": ALL, "gates": EACH, "towers": EACH},
    ),
}
MATRIX["me_ple"] = ({SHARED: ALL} | OWN_TABLES, MATRIX["ple"][1])
MATRIX["stem_net"] = MATRIX["me_ple"]


@pytest.mark.parametrize("name", MODELS)
def test_which_loss_reaches_which_tables_and_weights(name):
    model = model_with(name)
    pooled, dense = inputs_of(model)
    logits = model(pooled, dense)
    tables, parts = MATRIX[name]
    named = dict(model.named_parameters())
    leaves = [*pooled.values(), *named.values()]
    reached = {t: {} for t in range(T)}
    for t in range(T):
        found = torch.autograd.grad(
            logits[:, t].sum(), leaves, retain_graph=True, materialize_grads=True
        )
        assert all(gradient.isfinite().all() for gradient in found)
        reached[t] = dict(zip([*pooled, *named], found, strict=True))
    assert set(tables) == set(pooled)
    for owner in pooled:
        assert {t for t in range(T) if (reached[t][owner] != 0).any()} == tables[owner], owner
    for weight in named:
        (part,) = (part for part in parts if weight.startswith(part + "."))
        expected = parts[part]
        if isinstance(expected, set):
            assert {t for t in range(T) if (reached[t][weight] != 0).any()} == expected, weight
            continue
        for k, tasks in enumerate(expected):
            one = {t for t in range(T) if (reached[t][weight][k] != 0).any()}
            assert one == tasks, f"{weight}[{k}]"


@pytest.mark.parametrize("name", MODELS)
def test_shared_parameters_are_those_that_more_than_one_task_reaches_below_the_fork(name):
    model = model_with(name)
    _, parts = MATRIX[name]
    shared = {id(parameter) for parameter in model.shared_parameters()}
    for weight, parameter in model.named_parameters():
        (part,) = (part for part in parts if weight.startswith(part + "."))
        sets = parts[part] if isinstance(parts[part], tuple) else (parts[part],)
        is_shared = all(len(tasks) > 1 for tasks in sets)
        assert (id(parameter) in shared) == is_shared, weight


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("esmm", {"task_order": None}, "model.task_order: missing.*click, like, share"),
        ("esmm", {"task_order": ("like",)}, "model.task_order: 1 tasks.*needs 2"),
        ("esmm", {"task_order": ("like", "like")}, "model.task_order: 'like' is named twice"),
        ("esmm", {"task_order": ("like", "buy")}, "model.task_order: unknown task 'buy'.*share"),
        ("aitm", {"task_order": ("like", "share")}, "model.task_order: 2 tasks.*needs all of"),
        ("mmoe", {"num_shared_experts": 0}, "model.num_shared_experts: .*to 1, found 0"),
        ("omoe", {"num_shared_experts": 0}, "model.num_shared_experts: .*to 1, found 0"),
        (
            "me_mmoe",
            {"num_shared_experts": 0},
            "model.num_shared_experts: .*to 1, found 0",
        ),
    ],
)
def test_settings_that_do_not_fit_the_model_are_the_users_error(name, keys, message):
    with pytest.raises(UserError, match=message):
        model_with(name, **keys)


def test_one_task_has_no_order():
    with pytest.raises(UserError, match=r"model.name: 'aitm' needs at least 2 tasks.*click"):
        model_with("aitm", SCHEMA.select(tasks=["click"]), task_order=None)


def test_interactions_need_two_features():
    with pytest.raises(UserError, match=r"model.expert: 'nfwfm'"):
        model_with("mmoe", SCHEMA.select(features=["user", "dense0"]), expert="nfwfm")


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_mix(name):
    model = model_with(name).eval()
    pooled, dense = inputs_of(model)
    whole = model(pooled, dense)
    part = model({owner: value[3:5] for owner, value in pooled.items()}, dense[3:5])
    torch.testing.assert_close(whole[3:5], part)


@pytest.mark.parametrize("name", MODELS)
def test_dense_features_reach_every_task(name):
    model = model_with(name)
    pooled, dense = inputs_of(model)
    change = (model(pooled, dense + 1) - model(pooled, dense)).abs().max(dim=0).values
    assert (change > 0).all()


def test_every_model_is_a_config(tmp_path):
    for name in MODELS:
        content = {"run": {"dir": tmp_path}, "data": {"path": tmp_path}, "model": {"name": name}}
        assert Config.model_validate(content).model.name == name


def test_stem_net_without_task_tables_is_as_large_as_mmoe():
    """At the paper's widths, with as many experts: equal tables and experts, larger gates."""
    widths = {"expert_widths": (512, 512, 512), "gate_widths": (128, 64), "tower_widths": (128, 64)}
    mmoe = model_with("mmoe", num_shared_experts=1 + T, **widths)
    stem = model_with(
        "stem_net",
        num_shared_experts=1,
        num_task_experts=1,
        task_specific_features="none",
        gate_input="shared",
        **widths,
    )
    assert stem.owners == mmoe.owners
    sizes = [sum(p.numel() for p in model.parameters()) for model in (stem, mmoe)]
    assert sizes[0] == sizes[1]
    both = model_with("stem_net", num_shared_experts=1, num_task_experts=1, **widths)
    assert sum(p.numel() for p in both.parameters()) < 1.01 * sizes[0]
