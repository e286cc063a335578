"""Points on the probability simplex over the active tasks: projected, and by softmax."""

import torch
from torch import Tensor


def project_on_simplex(values: Tensor, active: Tensor) -> Tensor:
    """The nearest point with entries >= 0 that sum to 1, inactive entries 0.

    All entries are shifted by one threshold (Held, Wolfe & Crowder, 1974; Duchi et al., ICML 2008,
    figure 1): of the sums of the largest entries, less 1, over their number, the largest. The
    entries are not sorted for that, but all pairs compared, which a GPU does in fewer launches. No
    host sync.

    Args:
        values: (T,) floating point.
        active: (T,) bool; with none set the result is all 0.

    Returns:
        (T,) of the same dtype.
    """
    # Far below every entry; a power of two, so that its multiples are exact.
    out = -(torch.finfo(values.dtype).tiny ** -0.5)
    entries = torch.where(active, values, out)
    # [s, t]: whether entry t is among the largest, those from s on. No cumsum and no sort: the
    # first has no deterministic CUDA kernel, the second several.
    largest = (entries >= entries.unsqueeze(1)).to(values.dtype)
    threshold = ((largest @ entries - 1.0) / largest.sum(dim=1)).max()
    return (entries - threshold).clamp_min(0.0)


def softmax_over(values: Tensor, active: Tensor) -> Tensor:
    """(T,) softmax of the active entries, inactive ones 0; all 0 where none is active."""
    shares = torch.where(active, values, -torch.inf).softmax(dim=0)
    return torch.where(active, shares, 0.0)
