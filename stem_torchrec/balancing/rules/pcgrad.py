"""PCGrad: each gradient loses its components against the others."""

import torch
from torch import Tensor

from stem_torchrec.balancing.from_host import from_host
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options


class PcGradRule(Rule[Options]):
    """Σ_i g_i^PC of Yu et al. (NeurIPS 2020, algorithm 1), computed on the Gram matrix.

    Each task meets the others in an order of its own, drawn on the CPU from a generator seeded by
    ``seed`` and the step, so that all ranks, and a resumed run, draw the same.
    """

    name = "pcgrad"
    recordable = False

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α; with no conflict all 1."""
        orders = random_orders(situation.gram.shape[0], self.seed + step)
        orders = from_host(orders, situation.gram.device)
        return project_conflicts(situation.gram, situation.active, orders), state


def random_orders(num_tasks: int, seed: int) -> Tensor:
    """(T, T) int64 on the CPU: row i is a random order of all tasks."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(num_tasks, generator=generator) for _ in range(num_tasks)])


def project_conflicts(gram: Tensor, active: Tensor, orders: Tensor) -> Tensor:
    """(T,) multipliers of Σ_i g_i^PC, where g_i meets task orders[i, k] as its k-th.

    Row i of W (T, T) holds g_i^PC = Σ_j W_ij g_j. Meeting task j, with ⟨g_i^PC, g_j⟩ < 0 and
    j ≠ i, subtracts ⟨g_i^PC, g_j⟩ / ‖g_j‖² from W_ij; all i at once, T meetings.

    Args:
        gram: (T, T), 0 in the rows and columns of inactive tasks.
        active: (T,) bool.
        orders: (T, T) int64, each row a permutation.
    """
    size = gram.shape[0]
    tasks = torch.arange(size, device=gram.device)
    squares = torch.where(active, gram.diagonal(), 1.0)
    found = torch.diag(active.to(gram.dtype))
    for meeting in range(size):
        met = orders[:, meeting]
        dots = (found * gram[met]).sum(dim=1)
        against = (dots < 0) & (met != tasks)
        share = torch.where(against, dots / squares[met], 0.0)
        found = found - share.unsqueeze(1) * (met.unsqueeze(1) == tasks.unsqueeze(0))
    return found.sum(dim=0)
