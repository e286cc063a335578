"""Quadratic programs over x >= 0 by an interior-point method of fixed cost.

T variables, N programs that share their matrix. No host sync, no branch on a tensor's value, the
same number of iterations whatever the data.
"""

import torch
from torch import Tensor

ITERATIONS = 45
SHRINK = 0.3
# The share of the way to the boundary that a step may go.
BOUNDARY_SHARE = 0.95


def minimize_nonnegative(matrix: Tensor, linear: Tensor) -> Tensor:
    """x (N, T) = argmin ½ xᵀ H x + qᵀ x over x >= 0, one program per row.

    The central path as in ``central_path.py``, without a plane: H x + q - s = 0 and x∘s = μ, one
    Newton step per value of μ, and μ shrinks on a fixed schedule. Variables are scaled so that the
    diagonal of H is 1.

    Args:
        matrix: H (T, T) float64, positive definite.
        linear: q (N, T) float64; -H⁻¹ q is of the size of the scaled variables or below.

    Returns:
        (N, T) float64, not negative; x∘s is below 1e-12.
    """
    units = matrix.diagonal().rsqrt()
    matrix = matrix * units.unsqueeze(0) * units.unsqueeze(1)
    linear = linear * units
    x = torch.ones_like(linear)
    slack, barrier = x, 1.0
    for _ in range(ITERATIONS):
        barrier = barrier * SHRINK
        ratio = slack / x
        factor, _ = torch.linalg.cholesky_ex(matrix + torch.diag_embed(ratio))
        target = barrier / x
        residual = target - linear - x @ matrix
        move = torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1)
        slack_move = target - slack - ratio * move
        limit = torch.cat((-move / x, -slack_move / slack), dim=-1).amax(dim=-1, keepdim=True)
        length = (limit / BOUNDARY_SHARE).clamp_min(1.0).reciprocal()
        x, slack = x + length * move, slack + length * slack_move
    return x * units
