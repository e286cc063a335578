"""Weights that share out the descent fairly among the tasks, by Newton's method of fixed cost.

T tasks; G (T, T) Gram matrix, n (T,) gradient norms, C cosine matrix.
"""

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import cosines, gradient_norms

ITERATIONS = 40
# Lengths of a step that are tried at once; the best is taken.
HALVINGS = 12
# The share of the way to the boundary w = 0 that a step may go.
BOUNDARY_SHARE = 0.95
# Added to the cosine matrix: where gradients oppose each other exactly, no weights are enough.
RIDGE = 1e-7


def fair_weights(gram: Tensor, active: Tensor, power: float) -> Tensor:
    """w (T,) > 0 with (G w)_t = w_t^(-p) for the active tasks, 0 for the others.

    The gradient of a strictly convex function of w. Solved in y = w n / κ, the variables in which
    the condition reads C y = b y^(-p), with b_t = n_t^(p - 1) divided by its geometric mean b̄ and
    κ^(1 + p) = b̄, so that the size of the gradients does no harm.

    Args:
        gram: (T, T) float64, symmetric, 0 in inactive rows and columns.
        active: (T,) bool.
        power: p in [0.1, 2].

    Returns:
        (T,) float64. The condition holds to 1e-4 of w_t^(-p) where C has a condition number of at
        most some 1e3, to 1e-3 where norms differ 1000-fold; the ridge is what is left.
    """
    norms = torch.where(active, gradient_norms(gram), 1.0)
    pulls = (power - 1.0) * norms.log()
    middle = torch.where(active, pulls, 0.0).sum() / active.sum().clamp_min(1)
    matrix = cosines(gram) + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # A task that is left out has a row of its own, whose solution moves no other's.
    matrix = matrix + torch.diag((~active).to(gram.dtype))
    pull = torch.where(active, (pulls - middle).exp(), 1.0)
    y = _solve(matrix, pull, power)
    scale = (middle / (1.0 + power)).exp()
    return torch.where(active, scale * y / norms, 0.0)


def _solve(matrix: Tensor, pull: Tensor, power: float) -> Tensor:
    """y > 0 with matrix · y = pull y^(-p): Newton's steps on ½ yᵀ M y - Σ pull_t ∫ y_t^(-p)."""
    y = pull ** (1.0 / (1.0 + power))  # the solution for gradients at right angles
    lengths = 0.5 ** torch.arange(HALVINGS, dtype=y.dtype, device=y.device)
    for _ in range(ITERATIONS):
        force = pull * y ** (-power)
        system = matrix + torch.diag(power * force / y)
        factor, _ = torch.linalg.cholesky_ex(system)
        move = torch.cholesky_solve((force - matrix @ y).unsqueeze(1), factor).squeeze(1)
        limit = ((-move / y).max() / BOUNDARY_SHARE).clamp_min(1.0)
        tried = y + (lengths / limit).unsqueeze(1) * move
        worth = _potential(matrix, pull, power, tried)
        best = tried.gather(0, worth.argmin().expand(1, len(y))).squeeze(0)
        y = torch.where(torch.isfinite(best).all() & (best > 0).all(), best, y)
    return y


def _potential(matrix: Tensor, pull: Tensor, power: float, y: Tensor) -> Tensor:
    """(N,) values of the function for N points y (N, T)."""
    inner = y.log() if power == 1.0 else y ** (1.0 - power) / (1.0 - power)
    return 0.5 * ((y @ matrix) * y).sum(dim=1) - inner @ pull
