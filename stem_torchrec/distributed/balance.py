"""Puts balancing into a train step, as the config says."""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.balancing.gram import ExpertsGram, Gram, NoGram, PooledGram
from stem_torchrec.balancing.rule import Rule
from stem_torchrec.config import BalanceConfig, Config
from stem_torchrec.config.options import naming
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.balance_parameters import ParameterBalance
from stem_torchrec.distributed.balance_rows import RowGradients
from stem_torchrec.distributed.dense_step import DenseStep, RankMean
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.errors import UserError
from stem_torchrec.nn import Model


class ObserveLosses(nn.Module):
    """Between losses and backward: tells the fork the losses of the step."""

    def __init__(self, fork: BalancedFork) -> None:
        super().__init__()
        self._fork = [fork]  # not a submodule: the model owns it

    def forward(self, losses: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        self._fork[0].observe(losses)
        return losses


def rule_for(settings: BalanceConfig, num_tasks: int, seed: int = 0) -> Rule[Any]:
    """The configured rule; ``seed`` is the run's, for rules that draw at random.

    Raises:
        UserError: it cannot be made with these options, or does not fit the number of tasks.
    """
    with naming("balance"):
        rule = settings.rule_kind_of(settings.rule).make(settings.options, seed=seed)
        rule.check(num_tasks)
    return rule


def check_balance(config: Config, model: Model, num_tasks: int) -> None:
    """Raise UserError if the balance section does not fit the model or the tasks."""
    settings, name = config.balance, config.model.name
    rule_for(settings, num_tasks, config.run.seed)
    if settings.rule == "equal":
        return
    if not model.boundaries:
        raise UserError(
            f"balance.rule: {settings.rule!r} with model.name {name}, whose tasks share nothing; "
            "allowed: equal"
        )
    if settings.boundary not in model.boundaries:
        raise UserError(
            f"balance.boundary: {settings.boundary!r} with model.name {name}; "
            f"allowed: {', '.join(model.boundaries)}"
        )
    layers = getattr(config.model.options, "layers", 1)
    if layers > 1:
        raise UserError(
            f"balance.rule: {settings.rule!r} with model.layers {layers}; "
            "allowed: equal, or model.layers 1 (the shared stream of a stacked block reads every "
            "task's experts, so no boundary separates the tasks)"
        )


def install(
    config: Config,
    schema: Schema,
    model: Model,
    step: DenseStep,
    *,
    world_size: int,
    rank_mean: RankMean,
    group: dist.ProcessGroup | None,
) -> BalancedFork | None:
    """Replace the model's plain fork by a balanced one; with ``equal`` nothing is touched.

    Raises:
        UserError: as ``check_balance`` does.
    """
    settings = config.balance
    check_balance(config, model, len(schema.tasks))
    if settings.rule == "equal":
        return None
    widths, num_owners = feature_widths(schema, config.embedding), len(model.shared_owners)
    rule = rule_for(settings, len(schema.tasks), config.run.seed)
    grams: dict[str, Gram] = {
        "experts": ExpertsGram(),
        "pooled": PooledGram(num_owners * sum(widths.values()), settings.gram_rows),
    }
    fork = BalancedFork(
        rule,
        grams.get(settings.boundary) if rule.needs_gram else NoGram(),
        num_tasks=len(schema.tasks),
        process_group=group,
        gram_every=settings.gram_every,
    )
    step.balance = ObserveLosses(fork)
    if rule.needs_gram and settings.boundary in ("parameters", "dense_parameters"):
        rows = RowGradients(
            schema,
            widths,
            num_owners,
            world_size=world_size,
            rank_mean=rank_mean,
            group=group,
        )
        step.balance = ParameterBalance(
            fork,
            list(model.shared_parameters()),
            rows if settings.boundary == "parameters" else None,
            rank_mean,
        )
    model.fork = fork
    return fork
