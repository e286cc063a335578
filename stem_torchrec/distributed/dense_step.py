"""The dense part of a step: pooled features in, losses and gradients out.

B rows of the local batch, C_o columns of owner o's pooled features, T tasks, W ranks.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.precision import FLOAT32, DensePrecision
from stem_torchrec.distributed.verdict import known_unset
from stem_torchrec.nn import Model
from stem_torchrec.nn.losses import Labelled, labelled, task_losses


class RankMean(Protocol):
    """Starts the mean of a tensor over ranks; calling what it returns waits for the result."""

    def __call__(self, local: Tensor) -> Callable[[], Tensor]: ...


class DenseOutput(NamedTuple):
    """What the dense part makes of a batch; nothing holds a graph.

    Attributes:
        losses: (T,) local share of each task's loss; the mean over ranks is the global loss.
        logits: (B, T).
        target: labels and weights, (B, T) each.
        total_weights: (T,) mean over ranks of each task's summed weight: ``losses`` times this is
            the weighted sum of the local samples' losses.
        pooled: gradients (B, C_o) of the pooled features by owner, of those that are reached.
        weights: gradients of the dense weights, in their order.
    """

    losses: Tensor
    logits: Tensor
    target: Labelled
    total_weights: Tensor
    pooled: Mapping[str, Tensor] = MappingProxyType({})
    weights: Sequence[Tensor] = ()

    def is_finite(self) -> Tensor:
        """() bool: losses and all gradients are."""
        parts = [p for p in (self.losses, *self.pooled.values(), *self.weights) if p.numel() > 0]
        # One read of each. On a CPU the norm goes through elements one by one, on a GPU it is few
        # kernels.
        if self.losses.is_cuda:
            return get_total_norm(parts, float("inf")).isfinite()
        # A sum is not finite if one element is not, and takes half the time of extremes; but it
        # may overflow, which they do not.
        sums_are = torch.stack([part.sum() for part in parts]).isfinite().all()
        if known_unset(~sums_are):
            return sums_are
        return torch.stack([e for part in parts for e in torch.aminmax(part)]).isfinite().all()


class Dense(Protocol):
    """Pooled features (B, C_o) by owner and their batch -> losses and gradients. Collective."""

    def __call__(self, pooled: Mapping[str, Tensor], batch: Batch) -> DenseOutput: ...


class DenseStep:
    """Experts, gates, towers, losses and their gradients.

    The graph begins at the pooled features: no backward that runs here reaches a table, and so no
    fused table steps.

    Args:
        rank_mean: the label weights of the global batch travel while the model computes.
        precision: of the model's forward; ``precision.products`` is the caller's to enter.

    Attributes:
        balance: stands between losses and backward; (T,) losses and the batch's ids -> losses.
    """

    def __init__(
        self, model: Model, rank_mean: RankMean, precision: DensePrecision = FLOAT32
    ) -> None:
        self._model = model
        self._weights = list(model.parameters())
        self._rank_mean = rank_mean
        self.precision = precision
        self.balance: Callable[[Tensor, KeyedJaggedTensor], Tensor] = as_they_are

    def __call__(self, pooled: Mapping[str, Tensor], batch: Batch) -> DenseOutput:
        """Pooled features (B, C_o) by owner -> losses and gradients. Collective."""
        inputs = {owner: features.detach().requires_grad_() for owner, features in pooled.items()}
        target = labelled(batch.labels, batch.weights)
        total_weights = self._rank_mean(target.weights.sum(dim=0))
        dense = batch.dense.to(next(iter(inputs.values())).dtype)  # else it would widen them
        logits = self.precision.forward(self._model, inputs, dense)
        totals = total_weights()
        losses = global_batch_losses(logits, target, totals, self._model.penalty)
        loss = self.balance(losses, batch.sparse).sum(dim=0)
        if self._model.decorrelation is not None:
            # Padding has no labels. Straight from the tables, it passes no fork: no task's, it is
            # not balanced.
            loss = loss + self._model.decorrelation(inputs, target.weights.any(dim=1).float())
        to_pooled, to_weights = self._gradients(loss, inputs)
        return DenseOutput(losses.detach(), logits.detach(), target, totals, to_pooled, to_weights)

    def _gradients(
        self, loss: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        found = torch.autograd.grad(loss, [*inputs.values(), *self._weights], allow_unused=True)
        to_pooled, to_weights = found[: len(inputs)], found[len(inputs) :]
        return (
            {o: g for o, g in zip(inputs, to_pooled, strict=True) if g is not None},
            [
                gradient if gradient is not None else torch.zeros_like(weight)
                for gradient, weight in zip(to_weights, self._weights, strict=True)
            ],
        )


def as_they_are(losses: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
    """No balancing: the tasks' gradients add up."""
    return losses


def global_batch_losses(
    logits: Tensor, target: Labelled, total_weights: Tensor, penalty: nn.Module | None
) -> Tensor:
    """(T,) local shares of the mean loss per task over the labelled samples of all ranks.

    Args:
        penalty: logits (B, T) -> what is added to each sample's loss (B, T); None for nothing.
    """
    penalties = penalty(logits) if penalty is not None else None
    return task_losses(logits, target, total_weights, penalties)
