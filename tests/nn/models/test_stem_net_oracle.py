"""Our trainer against STEM-Net written down plainly: one module per expert, gate and tower."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stem_torchrec.nn.owners import SHARED
from tests.support.steps import (
    DIM,
    SCHEMA,
    assert_close,
    batch_of,
    config_of,
    random_rows,
    run_steps,
    start,
    state_of,
)

TOLERANCE = 1e-5
NUM_STEPS = 20
TASKS = SCHEMA.task_names


def perceptron(widths, *, last):
    """ReLU after every layer, but for a ``last`` one that is linear."""
    layers = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1] if last else layers)


class PlainStemNet(nn.Module):
    """Streams e^S and e^t, experts, gates over all experts, towers; foreign experts detached."""

    def __init__(self, model, specific, widths):
        super().__init__()
        self.model, self.specific = model, specific
        self.tables = nn.ModuleDict()
        for owner, names in (
            (SHARED, [f.name for f in SCHEMA.sparse]),
            *((t, specific) for t in TASKS),
        ):
            for feature in SCHEMA.sparse:
                if feature.name in names and f"{owner}__{feature.table_name}" not in self.tables:
                    bag = nn.EmbeddingBag(feature.num_embeddings, widths.get(feature.name, DIM))
                    self.tables[f"{owner}__{feature.table_name}"] = bag
        width = sum(widths.get(f.name, DIM) for f in SCHEMA.sparse) + len(SCHEMA.dense)
        experts = [width, *model.expert_widths]
        self.shared_experts = nn.ModuleList(
            perceptron(experts, last=False) for _ in range(model.num_shared_experts)
        )
        self.task_experts = nn.ModuleList(
            nn.ModuleList(perceptron(experts, last=False) for _ in range(model.num_task_experts))
            for _ in TASKS
        )
        num_experts = model.num_shared_experts + len(TASKS) * model.num_task_experts
        gate_width = 2 * width if model.gate_input == "both" else width
        gate = [gate_width, *model.gate_widths, num_experts]
        self.gates = nn.ModuleList(perceptron(gate, last=True) for _ in TASKS)
        tower = [model.expert_widths[-1], *model.tower_widths, 1]
        self.towers = nn.ModuleList(perceptron(tower, last=True) for _ in TASKS)

    def pooled(self, rows):
        """owner -> one (B, D) per feature, the owner's features in the schema's order."""
        result = {}
        for owner in (SHARED, *TASKS):
            result[owner] = {}
            for feature in SCHEMA.sparse:
                table = f"{owner}__{feature.table_name}"
                if owner != SHARED and feature.name not in self.specific:
                    continue
                bags = rows.ids[feature.name]
                ids = torch.tensor([i for bag in bags for i in bag])
                ends = np.cumsum([0, *(len(bag) for bag in bags)])[:-1]
                mode = feature.pooling if feature.kind == "bag" else "sum"
                result[owner][feature.name] = nn.functional.embedding_bag(
                    ids.long(), self.tables[table].weight, torch.from_numpy(ends), mode=mode
                )
        return result

    def forward(self, pooled, dense):
        names = [f.name for f in SCHEMA.sparse]
        shared = torch.cat([*(pooled[SHARED][name] for name in names), dense], 1)
        # A task without a table of its own for a feature reads the shared one, after its own.
        rest = [name for name in names if name not in self.specific]
        inputs = [
            torch.cat([*pooled[task].values(), *(pooled[SHARED][name] for name in rest), dense], 1)
            for task in TASKS
        ]
        outputs = [(None, expert(shared)) for expert in self.shared_experts]
        for owner, experts in enumerate(self.task_experts):
            outputs += [(owner, expert(inputs[owner])) for expert in experts]
        logits = []
        for task in range(len(TASKS)):
            gate_input = {
                "both": torch.cat([inputs[task], shared], 1),
                "task": inputs[task],
                "shared": shared,
            }[self.model.gate_input]
            weights = torch.softmax(self.gates[task](gate_input), 1)
            mixed = 0
            for k, (owner, output) in enumerate(outputs):
                foreign = owner not in (None, task) and self.model.stop_gradient
                mixed = mixed + weights[:, k : k + 1] * (output.detach() if foreign else output)
            logits.append(self.towers[task](mixed)[:, 0])
        return torch.stack(logits, 1)


def batched_layers(plain):
    """Name of our batched perceptrons -> the plain ones they hold, in order."""
    return {
        "stack.blocks.0.shared_experts": list(plain.shared_experts),
        "stack.blocks.0.task_experts": [e for experts in plain.task_experts for e in experts],
        "stack.blocks.0.gates.mlp": list(plain.gates),
        "towers.mlp": list(plain.towers),
    }


def weights_of(plain):
    """The plain weights under the names and in the shapes of ours."""
    result = {}
    for name, perceptrons in batched_layers(plain).items():
        if not perceptrons:
            continue
        linears = [[m for m in p if isinstance(m, nn.Linear)] for p in perceptrons]
        has_last = "experts" not in name
        for depth in range(len(linears[0])):
            is_last = has_last and depth == len(linears[0]) - 1
            place = f"{name}.last" if is_last else f"{name}.hidden.{depth}"
            result[f"{place}.weight"] = torch.stack([ls[depth].weight.t() for ls in linears])
            result[f"{place}.bias"] = torch.stack([ls[depth].bias for ls in linears])
    return {name: value.detach() for name, value in result.items()}


def copy_to(plain, state):
    """Our tables and dense weights into the plain model."""
    with torch.no_grad():
        for name, values in state.tables.items():
            plain.tables[name].weight.copy_(values)
        for name, perceptrons in batched_layers(plain).items():
            for k, one in enumerate(perceptrons):
                linears = [m for m in one if isinstance(m, nn.Linear)]
                for depth, linear in enumerate(linears):
                    place = f"recommender.model.{name}"
                    last = f"{place}.last" if depth == len(linears) - 1 else ""
                    key = last if f"{last}.weight" in state.dense else f"{place}.hidden.{depth}"
                    linear.weight.copy_(state.dense[f"{key}.weight"][k].t())
                    linear.bias.copy_(state.dense[f"{key}.bias"][k].ravel())


def plain_losses(logits, rows):
    labels, weights = torch.from_numpy(rows.labels), torch.from_numpy(rows.weights)
    losses = []
    for task in range(len(TASKS)):
        seen = ~labels[:, task].isnan()
        each = binary_cross_entropy_with_logits(
            logits[seen, task], labels[seen, task], reduction="none"
        )
        losses.append((weights[seen] * each).sum() / weights[seen].sum())
    return torch.stack(losses)


def train_plain(plain, config, rows_of_steps):
    kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}
    eps = {"eps": config.embedding.eps} if config.embedding.optimizer == "adagrad" else {}
    tables = list(plain.tables.parameters())
    dense = [p for name, p in plain.named_parameters() if not name.startswith("tables.")]
    optimizers = [
        kinds[config.embedding.optimizer](tables, lr=config.embedding.lr, **eps),
        kinds[config.optim.optimizer](dense, lr=config.optim.lr, **eps),
    ]
    bound, decay = config.embedding.max_gradient, config.embedding.weight_decay
    all_losses = []
    for rows in rows_of_steps:
        pooled = plain.pooled(rows)
        features = [value for owner in pooled.values() for value in owner.values()]
        losses = plain_losses(plain(pooled, torch.from_numpy(rows.dense)), rows)
        for optimizer in optimizers:
            optimizer.zero_grad()
        # The tables' gradient is that of the pooled features, clipped, plus that of the penalty.
        gradients = torch.autograd.grad(losses.sum(), features, retain_graph=True)
        losses.sum().backward(retain_graph=True, inputs=dense)
        penalty = sum(decay / 2 * value.square().sum(1).mean() for value in features)
        if bound is not None:
            gradients = [g.clamp(-bound, bound) for g in gradients]
        surrogate = sum((g * f).sum() for g, f in zip(gradients, features, strict=True))
        (surrogate + penalty).backward(inputs=tables)
        for optimizer in optimizers:
            optimizer.step()
        all_losses.append(losses.detach())
    return torch.stack(all_losses)


def assert_equal_training(alone, config, specific):
    generator = np.random.default_rng(5)
    rows_of_steps = [random_rows(generator, 16) for _ in range(NUM_STEPS)]
    session = start(config, alone)
    plain = PlainStemNet(config.model, specific, config.embedding.dims)
    before = state_of(session)
    assert before.tables.keys() == set(plain.tables)
    copy_to(plain, before)

    losses = run_steps(session, [batch_of(rows) for rows in rows_of_steps])
    expected_losses = train_plain(plain, config, rows_of_steps)
    torch.testing.assert_close(losses, expected_losses, atol=TOLERANCE, rtol=0)
    after = state_of(session)
    tables = {name: bag.weight.detach() for name, bag in plain.tables.items()}
    assert_close(after.tables, tables, TOLERANCE)
    prefix = "recommender.model."
    dense = {name.removeprefix(prefix): value for name, value in after.dense.items()}
    dense = {name: value for name, value in dense.items() if value.numel()}
    assert_close(dense, weights_of(plain), TOLERANCE)


def config_with(folder, optimizer, *, model=None, **embedding):
    rates = {"sgd": (5.0, 0.02), "adagrad": (0.2, 0.02)}[optimizer]
    return config_of(
        folder,
        model=model or {},
        embedding={"optimizer": optimizer, "lr": rates[0], "eps": 1e-4} | embedding,
        optim={"optimizer": optimizer, "lr": rates[1], "eps": 1e-4},
        distributed={"sharding": "table_wise"},
    )


ALL = tuple(f.name for f in SCHEMA.sparse)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize(
    ("model", "specific"),
    [
        ({}, ALL),
        ({"gate_input": "task", "num_task_experts": 2}, ALL),
        ({"gate_input": "shared"}, ALL),
        ({"stop_gradient": False}, ALL),
        ({"num_shared_experts": 0}, ALL),
        ({"task_specific_features": "none"}, ()),
        ({"task_specific_features": "item"}, ("item", "tags")),
        ({"task_specific_features": ["hour", "history"]}, ("history", "hour")),
    ],
    ids=str,
)
def test_training_equals_the_plain_models(tmp_path, alone, optimizer, model, specific):
    assert_equal_training(alone, config_with(tmp_path, optimizer, model=model), specific)


WIDE = {"user": 32, "tags": 4, "item": 12, "history": 12}


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize(
    ("model", "specific"),
    [
        ({}, ALL),
        ({"task_specific_features": "none"}, ()),
        ({"task_specific_features": ["hour", "history", "user"]}, ("user", "history", "hour")),
    ],
    ids=str,
)
def test_features_of_different_widths_equal_the_plain_models(
    tmp_path, alone, optimizer, model, specific
):
    assert_equal_training(alone, config_with(tmp_path, optimizer, model=model, dims=WIDE), specific)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize(
    "keys",
    [
        {"max_gradient": 5e-4},
        {"weight_decay": 1e-2},
        {"max_gradient": 5e-4, "weight_decay": 1e-2},
    ],
    ids=str,
)
def test_clipping_and_decay_equal_the_plain_models(tmp_path, alone, optimizer, keys):
    assert_equal_training(alone, config_with(tmp_path, optimizer, **keys), ALL)
