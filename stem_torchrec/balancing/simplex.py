"""Points on the probability simplex over the active tasks: projected, and by softmax."""

import torch
from torch import Tensor


def project_on_simplex(values: Tensor, active: Tensor) -> Tensor:
    """The nearest point with entries >= 0 that sum to 1, inactive entries 0.

    Sorts, then shifts by the largest of the candidate thresholds (Held, Wolfe & Crowder, 1974;
    Duchi et al., ICML 2008, figure 1). No host sync.

    Args:
        values: (T,) floating point.
        active: (T,) bool; with none set the result is all 0.

    Returns:
        (T,) of the same dtype.
    """
    lowest = torch.where(active, values, -torch.inf)
    ordered = lowest.sort(descending=True).values
    inside = ordered > -torch.inf
    size = values.shape[0]
    # A product with a triangle of ones: cumsum has no deterministic CUDA kernel.
    ones = torch.ones(size, size, dtype=values.dtype, device=values.device).tril()
    sums = ones @ torch.where(inside, ordered, 0.0)
    counts = torch.arange(1, size + 1, dtype=values.dtype, device=values.device)
    threshold = torch.where(inside, (sums - 1.0) / counts, -torch.inf).max()
    return torch.where(active, (values - threshold).clamp_min(0.0), 0.0)


def softmax_over(values: Tensor, active: Tensor) -> Tensor:
    """(T,) softmax of the active entries, inactive ones 0; all 0 where none is active."""
    shares = torch.where(active, values, -torch.inf).softmax(dim=0)
    return torch.where(active, shares, 0.0)
