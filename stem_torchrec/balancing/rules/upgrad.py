"""UPGrad: the mean of the gradients, each made to conflict with none."""

import torch
from torch import Tensor

from stem_torchrec.balancing.nonnegative import minimize_nonnegative
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

# Of the trace, added to the Gram's diagonal: gradients may depend on each other.
RIDGE = 1e-4


class UpGradRule(Rule[Options]):
    """α = Σ_t w_t, where Σ_s w_ts g_s is the projection of g_t / K on the dual cone.

    Quinton & Rey (2024, "Jacobian Descent For Multi-Objective Optimization", proposition 1): w_t
    minimises vᵀ G v over v >= e_t / K, for K active tasks. The dual cone holds the directions whose
    product with no gradient is negative. G is divided by its trace and gets 1e-4 on its diagonal,
    as TorchJD does it by default; unlike there, gradients of any size are.
    """

    name = "upgrad"

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α; with no conflict all 1/K."""
        gram, _, active = situation
        trace = gram.trace()
        regular = gram / torch.where(trace > 0, trace, 1.0)
        regular = regular + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        start = torch.diag(active.to(gram.dtype) / active.sum().clamp_min(1))
        beyond = minimize_nonnegative(regular, start @ regular)
        # What the interior-point method leaves of a zero belongs to no task that is left out.
        counted = active.unsqueeze(0) & active.unsqueeze(1)
        return (start + torch.where(counted, beyond, 0.0)).sum(dim=0), state
