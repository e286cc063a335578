"""Per-task binary cross-entropy over the labelled samples of the global batch.

B rows of the local batch, T tasks, W ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


class Labelled(NamedTuple):
    """Labels with the weight of each sample and task; the weight is 0 where the label is null.

    Attributes:
        labels: (B, T) float32, 0 or 1; 0 where null.
        weights: (B, T) float32.

    >>> Labelled(torch.ones(5, 2), torch.ones(5, 2)).labels.shape
    torch.Size([5, 2])
    """

    labels: Tensor
    weights: Tensor


def labelled(labels: Tensor, sample_weights: Tensor | None) -> Labelled:
    """Split (B, T) labels with NaN for null into labels and weights.

    Args:
        sample_weights: (B,), or None for 1 each.

    >>> labelled(torch.tensor([[1.0, float("nan")]]), torch.tensor([2.0]))
    Labelled(labels=tensor([[1., 0.]]), weights=tensor([[2., 0.]]))
    """
    observed = ~labels.isnan()
    weights = observed.to(labels.dtype)
    if sample_weights is not None:
        weights = weights * sample_weights.unsqueeze(-1)
    return Labelled(torch.nan_to_num(labels, nan=0.0), weights)


def task_losses(
    logits: Tensor, target: Labelled, total_weights: Tensor, penalties: Tensor | None = None
) -> Tensor:
    """(T,) weighted loss sums of the local batch over the global weight of each task.

    A sample's loss is its cross-entropy and, where given, its penalty, (B, T).

    ``total_weights`` (T,) is the mean over ranks of each task's summed weight, so that the mean
    over ranks of the result is the mean loss of the joined batch. A task without any label gives
    0.

    >>> target = labelled(torch.tensor([[1.0, 0.0], [0.0, float("nan")]]), None)
    >>> task_losses(torch.zeros(2, 2), target, target.weights.sum(dim=0))
    tensor([0.6931, 0.6931])
    """
    losses = binary_cross_entropy_with_logits(
        logits, target.labels, weight=target.weights, reduction="none"
    )
    if penalties is not None:
        losses = losses + target.weights * penalties
    return losses.sum(dim=0) / torch.where(
        total_weights > 0, total_weights, torch.ones_like(total_weights)
    )
