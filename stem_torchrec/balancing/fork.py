"""A fork whose backward balances the tasks' gradients of the shared part.

B rows of the local batch, T tasks, W ranks; a trunk maps shared features x (B, I) to outputs y
(M, B, H). Gradients g_t are those of the global batch's mean loss of task t.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.balancing.gradients import Factored, Gradients, Whole
from stem_torchrec.balancing.gram import Gram
from stem_torchrec.balancing.report import balance_metrics
from stem_torchrec.balancing.rule import Balanced, Rule, balance
from stem_torchrec.nn.fork import Forked, GateGradient, Handle, plain

RankMean = Callable[[Tensor], Callable[[], Tensor]]


class BalancedFork(nn.Module):
    """Hands each task its own view of the trunk and adds the gradients up as a rule says.

    One ordinary backward runs: at the fork all T gradients meet, their Gram matrix is summed over
    ranks, the rule turns it into multipliers a_t, and sum_t a_t g_t goes on to the trunk and the
    shared tables. What a task owns lies above the fork and keeps its own gradient.

    Args:
        rule: Gram matrix -> multipliers.
        gram: which gradients the Gram matrix is of, see ``gram.py``; None if it comes from
            elsewhere through ``set_from``.
        rank_mean: collective mean over ranks; every rank's backward calls it.
        world_size: W; a rank's gradient is W times its share of the global batch's.
        gram_every: steps from one Gram matrix to the next; between them multipliers stay.

    Attributes:
        losses: this rank's shares (T,) of the losses, set after each forward.
        features: shared features of the last forward with their graph, where ``gram`` is None.
    """

    multipliers: Tensor
    features: Tensor

    def __init__(
        self,
        rule: Rule,
        gram: Gram | None,
        *,
        num_tasks: int,
        rank_mean: RankMean,
        world_size: int,
        gram_every: int = 1,
    ) -> None:
        super().__init__()
        self._rule = rule
        self._gram = gram
        self._rank_mean = rank_mean
        self._world_size = world_size
        self._gram_every = gram_every
        self._state_names = []
        for name, value in rule.initial_state(num_tasks).items():
            self.register_buffer(f"state_{name}", value)
            self._state_names.append(name)
        self.register_buffer("multipliers", torch.ones(num_tasks))
        self._last: Balanced | None = None
        self._last_gram = torch.zeros(num_tasks, num_tasks)
        self._before: list[Tensor] = []
        self.losses = torch.zeros(num_tasks)
        self._step = 0
        self._only: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether this step makes a Gram matrix."""
        return self._step % self._gram_every == 0

    def begin(self, step: int) -> None:
        """Before each step: its number, which seeds random rules and paces the Gram matrix."""
        self._step = step
        self._before = []

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        outputs = trunk(features)
        if not torch.is_grad_enabled():
            return plain(features, outputs)
        if self._gram is None:
            self.features = features
        gates: list[GateGradient] = []
        x, y = _Fork.apply(self, trunk, num_tasks, gates, features, outputs)
        return Forked(Handle(features, outputs), Handle(x, y, gates))

    @contextmanager
    def only(self, task: int) -> Iterator[None]:
        """Backwards inside let through this task's gradient alone, as it is."""
        self._only = task
        try:
            yield
        finally:
            self._only = None

    def update(self, trunk: nn.Module, features: Tensor, gradients: Gradients) -> Tensor:
        """The multipliers (T,) of this backward; collective in steps that make a Gram matrix."""
        if self._only is not None:
            return torch.eye(len(self.multipliers), device=self.multipliers.device)[self._only]
        if self._gram is not None and self.is_due:
            local = self._gram(trunk, features, gradients)
            # A rank's gradient is W times its share; the mean over ranks takes one W of the two.
            mean = self._rank_mean(torch.cat([local.flatten() / self._world_size, self.losses]))()
            self.set_from(mean[: local.numel()].view_as(local), mean[local.numel() :])
        return self.multipliers

    def set_from(self, gram: Tensor, losses: Tensor) -> None:
        """Let the rule turn the global Gram matrix (T, T) and losses (T,) into multipliers."""
        state = {name: getattr(self, f"state_{name}") for name in self._state_names}
        self._before = [value.clone() for value in self._changing()]
        self._last = balance(self._rule, gram, losses, state, self._step)
        self._last_gram = gram
        for name, value in self._last.state.items():
            getattr(self, f"state_{name}").copy_(value)
        self.multipliers.copy_(self._last.multipliers)

    def last_state(self) -> dict[str, Any] | None:
        """What ``metrics`` reports on, on the host; None before the first Gram matrix."""
        if self._last is None:
            return None
        last = self._last._asdict() | {"gram": self._last_gram}
        state = {name: value.cpu() for name, value in last.pop("state").items()}
        return {name: value.cpu() for name, value in last.items()} | {"state": state}

    def set_last_state(self, state: Mapping[str, Any] | None) -> None:
        """Take up what ``last_state`` gave."""
        if state is None:
            self._last = None
            return
        device = self.multipliers.device
        self._last_gram = state["gram"].to(device)
        self._last = Balanced(
            multipliers=state["multipliers"].to(device),
            state={name: value.to(device) for name, value in state["state"].items()},
            active=state["active"].to(device),
            fallback=state["fallback"].to(device),
        )

    def undo(self) -> None:
        """Take back what this step did to multipliers and state, where it made a Gram matrix."""
        for value, before in zip(self._changing(), self._before, strict=False):
            value.copy_(before)
        self._before = []

    def _changing(self) -> list[Tensor]:
        return [self.multipliers, *(getattr(self, f"state_{name}") for name in self._state_names)]

    def metrics(self) -> dict[str, Tensor]:
        """Figures of the last Gram matrix, see ``report.py``; nothing before the first."""
        return balance_metrics(self._last_gram, self._last) if self._last is not None else {}


class _Fork(torch.autograd.Function):
    """x and y once per task, without a copy; the backward combines their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        fork: BalancedFork,
        trunk: nn.Module,
        num_tasks: int,
        gates: list[GateGradient],
        x: Tensor,
        y: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.fork, ctx.trunk, ctx.gates = fork, trunk, gates
        ctx.save_for_backward(x)
        return tuple(value.expand(num_tasks, *value.shape) for value in (x, y))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        features, outputs = gradients
        gated = Factored(ctx.gates.pop()) if ctx.gates else None
        assert not ctx.gates, "more than one gate per task left its gradient"
        by_task = Gradients(Whole(features), gated or Whole(outputs))
        multipliers = ctx.fork.update(ctx.trunk, ctx.saved_tensors[0], by_task)
        return None, None, None, None, *(part.combined(multipliers) for part in by_task)
