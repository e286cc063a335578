"""The point of least norm in the convex hull of the tasks' gradients, from their Gram matrix.

T tasks; G (T, T); λ (T,) on the simplex.
"""

import torch
from torch import Tensor

from stem_torchrec.balancing.central_path import Local, minimize_on_simplex
from stem_torchrec.balancing.cosine import cosines, gradient_norms

ITERATIONS = 25
SHRINK = 0.3
# Below this share of the largest a weight is what the interior-point method leaves of a zero.
ZERO_SHARE = 1e-9


def min_norm_weights(gram: Tensor, active: Tensor) -> Tensor:
    """λ = argmin ½ λᵀGλ over λ >= 0, Σλ = 1, with λ = 0 outside the active tasks.

    Solved in y = λ·n, the variables in which G becomes the cosine matrix C, so that norms of very
    different size do no harm: min ½ yᵀCy subject to Σ y_t / n_t = 1, y >= 0. (Its multiplier-free
    twin, argmin over y >= 0 of ½ yᵀCy - Σ y_t / n_t, has no solution when gradients oppose each
    other exactly; this form has.) Two tasks have the closed form of Sener & Koltun (NeurIPS 2018,
    equation 4). Where the minimiser is not unique, T > 2 gives one near the middle of the set.

    Args:
        gram: (T, T) float64, symmetric, 0 in inactive rows and columns.
        active: (T,) bool.

    Returns:
        (T,) float64. The objective exceeds the optimum by at most 1e-5 of itself plus 2⁻²³ Σ y_t²,
        the rounding of a float32 Gram.
    """
    if gram.shape[0] == 1:
        return active.to(gram.dtype)
    if gram.shape[0] == 2:
        return _two_tasks(gram, active)
    norms = torch.where(active, gradient_norms(gram), torch.inf)
    smallest = norms.min()
    plane = torch.where(active, smallest / norms, 0.0)
    # An absent task has a row of zeros here and in the plane: what its y is moves no other's.
    hessian = cosines(gram)
    one = torch.ones((), dtype=gram.dtype, device=gram.device)

    def local(y: Tensor, _: Tensor) -> Local:
        return Local(hessian @ y, hessian, one)

    size = gram.shape[0]
    start = torch.ones_like(plane) / plane.sum()
    y = minimize_on_simplex(local, plane, start, one / size, shrink=SHRINK, iterations=ITERATIONS)
    y = torch.where(active & (y > ZERO_SHARE * torch.where(active, y, 0.0).max()), y, 0.0)
    weights = y * plane
    return weights / weights.sum()


def _two_tasks(gram: Tensor, active: Tensor) -> Tensor:
    """Closed form; half and half where the gradients are identical."""
    first, second, dot = gram[0, 0], gram[1, 1], gram[0, 1]
    spread = first + second - 2.0 * dot
    share = ((second - dot) / torch.where(spread > 0, spread, 1.0)).clamp(0.0, 1.0)
    share = torch.where(spread > 0, share, 0.5)
    both = torch.stack((share, 1.0 - share))
    return torch.where(active.all(), both, active.to(gram.dtype))
