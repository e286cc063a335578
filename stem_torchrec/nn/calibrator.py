"""A penalty where a later task is more probable than the one it follows.

B rows, T tasks.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class Calibrator(nn.Module):
    """weight * max(p_t - p_s, 0) for each task t and the task s before it (AITM, equation 10).

    Its value counts in the loss of t. Its gradient is split, so that each task's loss depends on
    the task's own logit alone: the pull on p_t comes with the loss of t, that on p_s with the loss
    of s, each over the samples that have the task's label.

    Args:
        order: indices of the tasks, first to last.
        weight: factor of the penalty.

    >>> Calibrator([0, 1], 0.5)(torch.tensor([[0.0, 0.0]]))
    tensor([[0., 0.]])
    """

    def __init__(self, order: Sequence[int], weight: float) -> None:
        super().__init__()
        self.order, self.weight = list(order), weight

    def forward(self, logits: Tensor) -> Tensor:
        """(B, T) logits -> (B, T) penalties."""
        columns = logits.sigmoid().unbind(dim=1)
        penalties = [torch.zeros_like(column) for column in columns]
        for before, after in pairwise(self.order):
            on_after = (columns[after] - columns[before].detach()).relu()
            on_before = (columns[after].detach() - columns[before]).relu()
            penalties[after] = penalties[after] + on_after
            penalties[before] = penalties[before] + on_before - on_before.detach()
        return self.weight * torch.stack(penalties, dim=1)
