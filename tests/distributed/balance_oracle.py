"""Balancing computed in another way: one process, float64, explicit gradients per task."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.balancing.rule import balance
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.distributed.embeddings import table_configs
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.nn.fork import Forked, Handle
from stem_torchrec.nn.losses import labelled, task_losses
from tests.support.steps import SCHEMA, State

Named = dict[str, Tensor]


class Expected(NamedTuple):
    """One step's multipliers and the gradient each parameter should get, by name."""

    gram: Tensor
    multipliers: Tensor
    tables: Named
    dense: Named


class _Apart(nn.Module):
    """A fork whose handles are tensors of their own, so that each can be differentiated by."""

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        shared = Handle(features, trunk(features))
        self.handles = [Handle(shared.features * 1, shared.outputs * 1) for _ in range(num_tasks)]
        features, outputs = ([h[part] for h in self.handles] for part in (0, 1))
        return Forked(shared, Handle(torch.stack(features), torch.stack(outputs)))


def expected_step(config, batch, state: State) -> Expected:
    """From the same weights and the joined batch."""
    recommender = Recommender(config, SCHEMA)
    tables = table_configs(recommender.embeddings.layout)
    for table in tables:
        table.init_fn = nn.init.zeros_
    recommender.embeddings.tables = EmbeddingBagCollection(tables=tables)
    fork = recommender.model.fork = _Apart()
    recommender.double()
    parameters = dict(recommender.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(_value_of(name, state))

    pooled = _pooled(recommender, batch)
    logits = recommender.model(pooled, batch.dense.double())
    target = labelled(batch.labels.double(), batch.weights.double())
    penalty = recommender.model.penalty
    penalties = penalty(logits) if penalty is not None else None
    losses = task_losses(logits, target, target.weights.sum(dim=0), penalties)

    gram = _gram(config.balance.boundary, losses, fork, recommender, parameters)
    rule = rule_for(config.balance, len(losses), config.run.seed)
    result = balance(rule, gram, losses, rule.initial_state(len(losses)), 0)
    weights = result.multipliers.double()
    shared = shared_names(recommender)
    gradients = {
        name: _gradient(parameter, losses, weights if name in shared else None)
        for name, parameter in parameters.items()
    }
    if recommender.model.decorrelation is not None:  # no task's loss: no multiplier
        rows = (target.weights > 0).any(dim=1).float()
        loss = recommender.model.decorrelation(pooled, rows)
        for name in (name for name in parameters if ".embedding_bags." in name):
            gradients[name] = (
                gradients[name] + torch.autograd.grad(loss, parameters[name], retain_graph=True)[0]
            )
    return Expected(
        gram,
        weights,
        {_table(name): g for name, g in gradients.items() if ".embedding_bags." in name},
        {name: g for name, g in gradients.items() if ".embedding_bags." not in name},
    )


def _pooled(recommender: Recommender, batch) -> Named:
    pooled = recommender.embeddings(batch.sparse)
    recommender.shared_pooled = [pooled[owner] for owner in recommender.model.shared_owners]
    return pooled


def _gram(boundary: str, losses: Tensor, fork: _Apart, recommender, parameters: Named) -> Tensor:
    by_task = []
    for task, loss in enumerate(losses):
        if boundary == "experts":
            inputs = list(fork.handles[task][:2])
        elif boundary == "pooled":
            inputs = recommender.shared_pooled
        else:
            names = shared_names(recommender)
            if boundary == "dense_parameters":
                names = [name for name in names if ".embedding_bags." not in name]
            inputs = [parameters[name] for name in names]
        found = torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)
        by_task.append(torch.cat([part.flatten() for part in found]))
    flat = torch.stack(by_task)
    return flat @ flat.t()


def shared_names(recommender) -> list[str]:
    """Parameters that more than one task's loss reaches."""
    model = recommender.model
    dense = {id(parameter) for parameter in model.shared_parameters()}
    tables = tuple(f"{owner}__" for owner in model.shared_owners)
    return [
        name
        for name, parameter in recommender.named_parameters()
        if id(parameter) in dense
        or (".embedding_bags." in name and _table(name).startswith(tables))
    ]


def _gradient(parameter: Tensor, losses: Tensor, weights: Tensor | None) -> Tensor:
    """What is shared gets the combined gradient, what a task owns its own, unweighted."""
    total = losses.sum() if weights is None else (weights * losses).sum()
    options = {"retain_graph": True, "materialize_grads": True}
    return torch.autograd.grad(total, parameter, **options)[0]


def _value_of(name: str, state: State) -> Tensor:
    if ".embedding_bags." in name:
        return state.tables[_table(name)].double()
    return state.dense[f"recommender.{name}"].double()


def _table(name: str) -> str:
    return name.removesuffix(".weight").rsplit(".", 1)[-1]
