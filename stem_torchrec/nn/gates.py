"""Gated mixtures of experts, among them STEM's All-Forward Task-specific-Backward gate.

B rows, T tasks, G gates, M_s shared experts and M_t of each task, K of them read by a gate, all of
width H.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stem_torchrec.nn.fork import GateGradient, Handle
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.owners import numbered

_SUMS_OF_PRODUCTS = 16
"""Weights of a row from which on a GPU sums them up by products."""

Reach = Literal["all", "forward", "own"]
"""Which experts of the tasks a gate reads and trains: ``all``; ``forward``: reads all, trains its
own task's alone (AFTB, STEM, AAAI 2024, equations 5 and 6); ``own``: knows its own task's alone."""


def mix(weights: Tensor, shared: Handle, tasks: Tensor, reach: Reach) -> Tensor:
    """Weighted sum of the experts that each gate reads: (G, B, H).

    The gradient of an expert that a gate does not train is exactly zero.

    Args:
        weights: (G, B, K), over the shared experts, then task 0's, task 1's, ...; or over the
            shared ones and the gate's own with ``own``.
        shared: its outputs are the shared experts' as each gate reads them, (G, M_s, B, H) of
            equal values; or (1, M_s, B, H), which all gates read.
        tasks: (T, M_t, B, H) outputs of the tasks' experts.
        reach: gate t is task t's (G = T) unless ``all``.

    Raises:
        ValueError: another number of gates than of tasks, or of handles than of gates.

    >>> weights = torch.rand(2, 5, 3).softmax(dim=2)  # two tasks, one shared expert, one each
    >>> shared = Handle(torch.rand(5, 8), torch.rand(1, 1, 5, 4))
    >>> mix(weights, shared, torch.rand(2, 1, 5, 4), "forward").shape
    torch.Size([2, 5, 4])
    """
    if len(shared.outputs) not in (1, len(weights)):
        raise ValueError(
            f"{len(shared.outputs)} handles of the shared experts with {len(weights)} gates; "
            "allowed: one for all, or one each"
        )
    if reach != "all" and len(weights) != len(tasks):
        raise ValueError(
            f"{len(weights)} gates with {len(tasks)} tasks; allowed: one each, or reach 'all'"
        )
    return _Mix.apply(weights, shared.outputs, tasks, reach, shared.gates)


class _Mix(torch.autograd.Function):
    """Written out, so that no expert's output is copied and little is allocated.

    As stack, multiply and sum, mixing allocates and reads back about ten times the experts'
    outputs; on a CPU that is a sixth of the whole step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        shared: Tensor,
        tasks: Tensor,
        reach: Reach,
        gates: list[GateGradient] | None,
    ) -> Tensor:
        ctx.save_for_backward(weights, tasks, shared[0])
        ctx.reach, ctx.gates, ctx.num_handles = reach, gates, len(shared)
        if reach == "own":
            return torch.cat(
                [
                    weighted_sums(w[None], [shared[0], own])
                    for w, own in zip(weights, tasks, strict=True)
                ]
            )
        return weighted_sums(weights, [shared[0], tasks.flatten(0, 1)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weights, tasks, shared = ctx.saved_tensors
        of_shared, of_tasks = weights.tensor_split([len(shared)], dim=2)
        to_weights = [_products(gradient, shared)]
        if ctx.reach == "own":
            to_weights += [torch.linalg.vecdot(gradient.unsqueeze(1), tasks).transpose(1, 2)]
            own = of_tasks
        else:
            to_weights += [_products(gradient, tasks.flatten(0, 1))]
            own = of_tasks.unflatten(2, tasks.shape[:2]).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        if ctx.reach == "all":
            to_tasks = weighted_sums(of_tasks.permute(2, 1, 0), [gradient]).view_as(tasks)
        else:
            to_tasks = _multiplied_out(own, gradient)
        to_shared = _to_shared(ctx, of_shared, gradient, len(shared))
        return torch.cat(to_weights, dim=2), to_shared, to_tasks, None, None


def _to_shared(ctx: Any, of_shared: Tensor, gradient: Tensor, num_shared: int) -> Tensor:
    if ctx.gates is not None:
        ctx.gates.append(GateGradient(of_shared, gradient))
        return gradient.new_zeros(()).expand(ctx.num_handles, num_shared, *gradient.shape[1:])
    if ctx.num_handles == 1:
        return weighted_sums(of_shared.permute(2, 1, 0), [gradient]).unsqueeze(0)
    return _multiplied_out(of_shared, gradient)


def _multiplied_out(weights: Tensor, gradient: Tensor) -> Tensor:
    """Weights (G, B, M) and gradients (G, B, H) of the mixtures -> (G, M, B, H) of the experts."""
    weights = weights.to(gradient.dtype)  # under autocast they are float32, experts are not
    return weights.transpose(1, 2).unsqueeze(-1) * gradient.unsqueeze(1)


def _products(gradient: Tensor, experts: Tensor) -> Tensor:
    """Inner products of (G, B, H) with (K, B, H): (G, B, K)."""
    return torch.bmm(gradient.permute(1, 0, 2), experts.permute(1, 2, 0)).permute(1, 0, 2)


def weighted_sums(weights: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """(N, B, K) weights of K terms, in groups of (M, B, H) -> (N, B, H) of the terms' type."""
    if weights.is_cuda and len(weights) * weights.shape[2] >= _SUMS_OF_PRODUCTS:
        return _sums_by_products(weights, groups)
    terms = (term for group in groups for term in group)
    columns = weights.unsqueeze(-1).unbind(2)
    (first, weight), *others = zip(terms, columns, strict=True)
    sums = first.new_empty(len(weights), *first.shape)
    torch.mul(first, weight, out=sums)
    for term, weight in others:
        sums.addcmul_(term, weight)
    return sums


def _sums_by_products(weights: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """``weighted_sums`` as a product per row and group, which reads each term once.

    Term by term, 8 gates over 9 experts take a third of a GPU's step (batch 16,384); but the
    products of 2 over 3 are so small that they take 2 ms more than six terms do (batch 65,536).
    """
    by_row = weights.to(groups[0].dtype).transpose(0, 1)
    first, *others = zip(
        by_row.split([len(group) for group in groups], dim=2),
        (group.transpose(0, 1) for group in groups),
        strict=True,
    )
    sums = torch.bmm(*first)
    for weight, terms in others:
        sums.baddbmm_(weight, terms)
    return sums.transpose(0, 1)


class Gates(nn.Module):
    """G perceptrons with a softmax over the experts they weigh.

    Args:
        names: of the gates.
        groups: of the K experts, in their order: whose each one is.
        width_in: I.
        widths: of the hidden layers.
        dropout: probability of dropping a hidden activation.

    >>> gates = Gates(["click", "like"], ["shared", "click", "like"], 8, (4,))
    >>> gates(torch.randn(5, 8)).sum(dim=2).allclose(torch.ones(2, 5))
    True
    """

    def __init__(
        self,
        names: Sequence[str],
        groups: Sequence[str],
        width_in: int,
        widths: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.names, self.groups = tuple(names), tuple(groups)
        self.mlp = BatchedMlp(
            len(names),
            width_in,
            widths,
            len(groups),
            dropout,
            owners=names,
            outputs=numbered(groups),
        )

    def forward(self, x: Tensor, common: Tensor | None = None) -> Tensor:
        """(G, B, I), or (B, I) that all read, -> weights (G, B, K) that sum to 1.

        Args:
            common: columns that all read after their own, as ``BatchedMlp`` has them.
        """
        return self.mlp(x, common).softmax(dim=-1)
