"""Convex programs on a scaled simplex by a primal-dual interior-point method of fixed cost.

T variables. Every operation stays on the device: no host sync, no branch on a tensor's value, the
same number of iterations whatever the data. Deterministic for a given device and library build.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The share of the way to the boundary x = 0 that a step may go.
BOUNDARY_SHARE = 0.95
# Damping of Newton's system, relative to the Hessian's scale. It keeps the factorisation positive
# definite when rounding of a float32 Gram has made a zero eigenvalue slightly negative. It bends
# the path (a proximal term around the current point), never the point where the path ends.
PROXIMAL = 1e-6


class Local(NamedTuple):
    """The objective around a point x.

    Attributes:
        gradient: (T,).
        hessian: (T, T), positive semi-definite up to rounding.
        scale: () the Hessian's scale, in which the proximal term is measured.
        trust: (T, T); a step d keeps dᵀ trust d <= 1. None for a quadratic objective.
    """

    gradient: Tensor
    hessian: Tensor
    scale: Tensor
    trust: Tensor | None = None


def minimize_on_simplex(
    local: Callable[[Tensor, Tensor], Local],
    plane: Tensor,
    start: Tensor,
    barrier: Tensor,
    *,
    shrink: float,
    iterations: int,
) -> Tensor:
    """Minimise f(x) subject to x >= 0 and planeᵀ x = 1.

    Follows the central path (Boyd & Vandenberghe, Convex Optimization, §11.7, with the
    barrier's weight on a fixed schedule): the conditions ∇f(x) - ν plane - s = 0 and x∘s = μ are
    solved by one Newton step per value of μ, and μ shrinks by ``shrink`` each time. A step that
    is not finite is not taken; whatever the step, x stays inside.

    Args:
        local: (x, μ) -> the objective around x, which may be smoothed by an amount that goes to 0
            with μ.
        plane: (T,) float64, not negative.
        start: (T,) float64, positive.
        barrier: () float64, positive: μ before the first step.
        shrink: factor of μ per iteration, in (0, 1).
        iterations: Newton steps.

    Returns:
        (T,) float64, positive, with planeᵀ x = 1 up to rounding.
    """
    x, slack = start, barrier / start
    for _ in range(iterations):
        barrier = barrier * shrink
        here = local(x, barrier)
        ratio = slack / x
        system = here.hessian + torch.diag(ratio + PROXIMAL * here.scale)
        factor, _ = torch.linalg.cholesky_ex(system)
        target = barrier / x
        solved = torch.cholesky_solve(torch.stack((plane, target - here.gradient), dim=1), factor)
        along, free = solved[:, 0], solved[:, 1]
        price = (1.0 - plane @ x - plane @ free) / (plane @ along)
        move = free + price * along
        slack_move = target - slack - ratio * move
        limit = torch.cat((-move / x, -slack_move / slack)).max() / BOUNDARY_SHARE
        if here.trust is not None:
            limit = torch.maximum(limit, (move @ here.trust @ move).clamp_min(0.0).sqrt())
        length = limit.clamp_min(1.0).reciprocal()
        sound = torch.isfinite(limit + move.sum() + slack_move.sum())
        x = torch.where(sound, x + length * move, x)
        slack = torch.where(sound, slack + length * slack_move, slack)
    return x / (plane @ x)
