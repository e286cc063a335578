"""The All-Forward Task-specific-Backward gate of STEM (AAAI 2024, equations 5 and 6).

B rows, T tasks, G gates, K = M_s + T * M_t experts of width H.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def mix(gate_logits: Tensor, shared: Tensor, tasks: Tensor, *, stop_gradient: bool) -> Tensor:
    """Softmax-weighted sum of all experts for each gate: (G, B, H).

    Args:
        gate_logits: (G, B, K), over the shared experts, then task 0's, task 1's, ...
        shared: (G, M_s, B, H) outputs of the shared experts as each gate reads them, equal values;
            or (1, M_s, B, H), which all gates read.
        tasks: (T, M_t, B, H) outputs of the tasks' experts.
        stop_gradient: gate t is task t's (G = T) and passes no gradient to other tasks' experts
            (exactly zero); else every gate passes gradient to every expert.
    """
    assert len(shared) in (1, len(gate_logits))
    assert not stop_gradient or len(gate_logits) == len(tasks)
    return _Mix.apply(gate_logits.softmax(dim=-1), shared, tasks, stop_gradient)


class _Mix(torch.autograd.Function):
    """Written out, so that no expert's output is copied and little is allocated.

    As stack, multiply and sum, mixing allocates and reads back about ten times the experts'
    outputs; on a CPU that is a sixth of the whole step.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, shared: Tensor, tasks: Tensor, stop_gradient: bool
    ) -> Tensor:
        ctx.save_for_backward(weights, tasks, shared[0])
        ctx.stop_gradient, ctx.is_one = stop_gradient, len(shared) == 1
        return _weighted_sums(weights, [*shared[0], *tasks.flatten(0, 1)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weights, tasks, shared = ctx.saved_tensors
        by_row = gradient.permute(1, 0, 2)
        to_weights = torch.cat(
            [torch.bmm(by_row, h.permute(1, 2, 0)) for h in (shared, tasks.flatten(0, 1))], dim=2
        ).permute(1, 0, 2)
        of_expert = weights.permute(2, 1, 0)  # (K, B, G)
        of_shared, of_tasks = of_expert[: len(shared)], of_expert[len(shared) :]
        if ctx.is_one:
            to_shared = _weighted_sums(of_shared, list(gradient)).unsqueeze(0)
        else:
            to_shared = of_shared.permute(2, 0, 1).unsqueeze(-1) * gradient.unsqueeze(1)
        if ctx.stop_gradient:
            own = of_tasks.unflatten(0, tasks.shape[:2]).diagonal(dim1=0, dim2=3)  # (M_t, B, T)
            to_tasks = own.permute(2, 0, 1).unsqueeze(-1) * gradient.unsqueeze(1)
        else:
            to_tasks = _weighted_sums(of_tasks, list(gradient)).view_as(tasks)
        return to_weights, to_shared, to_tasks, None


def _weighted_sums(weights: Tensor, terms: Sequence[Tensor]) -> Tensor:
    """(N, B, K) weights of K terms (B, H) -> (N, B, H)."""
    sums = terms[0].new_empty(len(weights), *terms[0].shape)
    for out, weight in zip(sums, weights, strict=True):
        torch.mul(terms[0], weight[:, :1], out=out)
        for k, term in enumerate(terms[1:], start=1):
            out.addcmul_(term, weight[:, k : k + 1])
    return sums
