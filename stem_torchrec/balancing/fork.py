"""A fork whose backward balances the tasks' gradients of the shared part.

B rows of the local batch, T tasks; a trunk maps shared features x (B, I) to outputs y (M, B, H).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stem_torchrec.balancing.applied_rule import AppliedRule
from stem_torchrec.balancing.gradients import Factored, Gradients, TaskGradients, Whole
from stem_torchrec.balancing.gram import Gram
from stem_torchrec.balancing.rule import Rule
from stem_torchrec.nn.fork import Forked, GateGradient, Handle, plain

Weigh = Callable[..., Tensor]
"""(the tasks' gradients of each forked value, then each kept value) -> multipliers (T,)."""


def forked(
    weigh: Weigh,
    num_tasks: int,
    *values: Tensor,
    keep: int = 0,
    gates: list[GateGradient] | None = None,
    guarded: bool = False,
) -> tuple[Tensor, ...]:
    """Each value (...) once per task, (T, ...), without a copy.

    In the backward ``weigh`` sees all T gradients of all values at once, and each value gets
    sum_t a_t g_t.

    Args:
        keep: how many values, from the first, ``weigh`` is given too.
        gates: where a gate leaves the last value's gradient in factors.
        guarded: whatever is not finite makes the whole step be left out. A task that is not, and
            has multiplier 0, may then go into the sums, which a GPU would have to copy it to avoid.
    """
    found = _Fork.apply(weigh, num_tasks, keep, gates, guarded, *values)
    assert isinstance(found, tuple)
    return found


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weigh: Weigh,
        num_tasks: int,
        keep: int,
        gates: list[GateGradient] | None,
        guarded: bool,
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.weigh, ctx.gates, ctx.guarded = weigh, gates, guarded
        ctx.save_for_backward(*values[:keep])
        return tuple(value.expand(num_tasks, *value.shape) for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        by_task: list[TaskGradients] = [Whole(gradient) for gradient in gradients]
        if ctx.gates:
            by_task[-1] = Factored(ctx.gates.pop())
            assert not ctx.gates, "more than one gate per task left its gradient"
        # Products and sums of gradients are no place for autocast's lower precision.
        with torch.autocast(gradients[0].device.type, enabled=False):
            multipliers = ctx.weigh(by_task, *ctx.saved_tensors)
            if not ctx.guarded:
                by_task = [part.taking_part(multipliers) for part in by_task]
            return *[None] * 5, *(part.combined(multipliers) for part in by_task)


class BalancedFork(AppliedRule):
    """Hands each task its own view of a trunk and adds the gradients up as a rule says.

    For a train step that is left out as a whole where a gradient is not finite.

    One ordinary backward runs: at the fork all T gradients meet, their Gram matrix is summed over
    ranks, the rule turns it into multipliers a_t, and sum_t a_t g_t goes on to the trunk and the
    shared tables. What a task owns lies above the fork and keeps its own gradient.

    Args:
        rule: Gram matrix -> multipliers.
        gram: which gradients the Gram matrix is of, see ``gram.py``; None if it comes from
            elsewhere through ``set_from``.
        num_tasks: T.
        process_group: see ``AppliedRule``; every rank's backward reduces over it.
        gram_every: see ``AppliedRule``.

    Attributes:
        features: shared features of the last forward with their graph, where ``gram`` is None.
    """

    features: Tensor

    def __init__(
        self,
        rule: Rule[Any],
        gram: Gram | None,
        *,
        num_tasks: int,
        process_group: dist.ProcessGroup | None = None,
        gram_every: int = 1,
    ) -> None:
        super().__init__(rule, num_tasks, process_group=process_group, gram_every=gram_every)
        self._gram = gram
        self._only: int | None = None

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        outputs = trunk(features)
        if not torch.is_grad_enabled():
            return plain(features, outputs)
        if self._gram is None:
            self.features = features
        gates: list[GateGradient] = []
        weigh = partial(self._weigh, trunk)
        x, y = forked(weigh, num_tasks, features, outputs, keep=1, gates=gates, guarded=True)
        return Forked(Handle(features, outputs), Handle(x, y, gates))

    @contextmanager
    def only(self, task: int) -> Iterator[None]:
        """Backwards inside let through this task's gradient alone, as it is."""
        self._only = task
        try:
            yield
        finally:
            self._only = None

    def _weigh(self, trunk: nn.Module, by_task: list[TaskGradients], features: Tensor) -> Tensor:
        """The multipliers (T,) of this backward; collective in steps that make a Gram matrix."""
        if self._only is not None:
            return torch.eye(len(self.multipliers), device=self.multipliers.device)[self._only]
        if self._gram is not None and self.is_due:
            self.set_from_ranks(self._gram(trunk, features, Gradients(*by_task)))
        return self.newest
