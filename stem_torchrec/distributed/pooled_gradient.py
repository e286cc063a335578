"""Clipping and L2 decay of the tables, applied to the gradient of the pooled features.

FBGEMM's own weight decay is silently ignored on CPU and differs between optimizers; here it is
one definition for every optimizer, kernel and sharding type.
"""

from typing import Any

import torch
from torch import Tensor, nn


class PooledGradient(nn.Module):
    """Identity whose backward clips the gradient g of the pooled features e and adds decay.

    With B rows in the local batch and W ranks the global batch's gradient per element becomes
    clip(g, +-max_gradient) + weight_decay / B * e: the gradient of the mean over samples of
    weight_decay / 2 * |e|^2, so that a row decays in proportion to how often it is looked up.

    Args:
        max_gradient: bound of each element, None for none.
        weight_decay: L2 factor, 0 for none.
        world_size: W; a rank's gradient is W times its share of the global batch's.
    """

    def __init__(self, max_gradient: float | None, weight_decay: float, world_size: int) -> None:
        super().__init__()
        self._bound = max_gradient * world_size if max_gradient is not None else None
        self._weight_decay = weight_decay

    def forward(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._bound is None and self._weight_decay == 0:
            return pooled
        return {
            owner: _Adjust.apply(features, self._bound, self._weight_decay / len(features))
            for owner, features in pooled.items()
        }


class _Adjust(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, bound: float | None, decay: float) -> Tensor:
        ctx.bound, ctx.decay = bound, decay
        if decay:
            ctx.save_for_backward(features)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        if ctx.bound is not None:
            gradient = gradient.clamp(-ctx.bound, ctx.bound)
        if ctx.decay:
            gradient = gradient.add(ctx.saved_tensors[0], alpha=ctx.decay)
        return gradient, None, None
