"""The All-Forward Task-specific-Backward gate of STEM (AAAI 2024, equations 5 and 6).

B rows, T tasks, K = T * M_t + M_s experts of width H.
"""

import torch
from torch import Tensor


def readable_experts(shared: Tensor, tasks: Tensor, task: int | None) -> Tensor:
    """Every expert's output as one task may read it: foreign experts behind a stop-gradient.

    Args:
        shared: (M_s, B, H) outputs of the shared experts.
        tasks: (T, M_t, B, H) outputs of the tasks' experts.
        task: the reading task; None reads all experts without a stop-gradient.

    Returns:
        (K, B, H): the shared experts, then task 0's, task 1's, ...
    """
    if task is None:
        return torch.cat([shared, tasks.flatten(0, 1)])
    before, own, after = tasks[:task], tasks[task : task + 1], tasks[task + 1 :]
    parts = [before.detach(), own, after.detach()]
    return torch.cat([shared, *(part.flatten(0, 1) for part in parts)])


def mix(gate_logits: Tensor, experts: Tensor) -> Tensor:
    """Softmax-weighted sum of experts: logits (B, K), experts (K, B, H) -> (B, H)."""
    weights = gate_logits.softmax(dim=-1)
    return (weights.t().unsqueeze(-1) * experts).sum(dim=0)
