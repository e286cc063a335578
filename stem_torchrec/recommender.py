"""One step's forward: batch -> pooled features -> logits -> losses.

B rows of the local batch, T tasks.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.batch import Batch
from stem_torchrec.config import Config, build_model
from stem_torchrec.embeddings import OwnerEmbeddings
from stem_torchrec.nn import Inputs, Labelled, labelled, task_losses
from stem_torchrec.schema import Schema


class StepOutput(NamedTuple):
    """What a step leaves for metrics; all detached.

    Attributes:
        losses: (T,) local share of each task's loss; the mean over ranks is the global loss.
        logits: (B, T).
        target: labels and weights, (B, T) each.
        total_weights: (T,) mean over ranks of each task's summed weight: ``losses`` times this is
            the weighted sum of the local samples' losses.
    """

    losses: Tensor
    logits: Tensor
    target: Labelled
    total_weights: Tensor


class RankMean(Protocol):
    """Starts the mean of a tensor over ranks; calling what it returns waits for the result."""

    def __call__(self, local: Tensor) -> Callable[[], Tensor]: ...


class Recommender(nn.Module):
    """Tables and model; forward gives the logits (B, T).

    Args:
        world_size: W; a rank's gradient is W times its share of the global batch's.
    """

    def __init__(self, config: Config, schema: Schema, world_size: int = 1) -> None:
        super().__init__()
        model = build_model(config.model, inputs_of(schema, config.embedding.dim))
        self.embeddings = OwnerEmbeddings(schema, model.owners, config.embedding, world_size)
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(self.embeddings(batch.sparse), batch.dense)


def inputs_of(schema: Schema, dim: int) -> Inputs:
    """What a model is told of the data: its features and tasks, and the embedding dimension."""
    sides = {feature.name: feature.side for feature in schema.sparse}
    return Inputs(sides, dim, schema.task_names, len(schema.dense))


class TrainStep(nn.Module):
    """What the train pipeline calls: batch -> ((T,) losses to be summed, output for metrics).

    Its forward only wires modules: the pipeline traces it to find the tables' input. The label
    weights of the global batch travel while the model computes (``rank_mean`` is collective).
    """

    def __init__(self, recommender: Recommender, rank_mean: RankMean) -> None:
        super().__init__()
        self.target = GlobalTarget(rank_mean)
        self.recommender = recommender
        self.loss = GlobalBatchLoss(recommender.model.penalty)
        self.balance: nn.Module = Unbalanced()

    def forward(self, batch: Batch) -> tuple[Tensor, StepOutput]:
        target, total_weights = self.target(batch.labels, batch.weights)
        logits = self.recommender(batch)
        losses, output = self.loss(logits, target, total_weights)
        return self.balance(losses, batch.sparse), output


class Unbalanced(nn.Module):
    """Stands between losses and backward where no balancing does."""

    def forward(self, losses: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        return losses


class GlobalTarget(nn.Module):
    """Labels with weights, and the pending mean over ranks of each task's summed weight."""

    def __init__(self, rank_mean: RankMean) -> None:
        super().__init__()
        self._rank_mean = rank_mean

    def forward(
        self, labels: Tensor, sample_weights: Tensor | None
    ) -> tuple[Labelled, Callable[[], Tensor]]:
        target = labelled(labels, sample_weights)
        return target, self._rank_mean(target.weights.sum(dim=0))


class GlobalBatchLoss(nn.Module):
    """Mean loss per task over the labelled samples of all ranks.

    Args:
        penalty: logits (B, T) -> what is added to each sample's loss (B, T); None for nothing.
    """

    def __init__(self, penalty: nn.Module | None) -> None:
        super().__init__()
        self._penalty = penalty

    def forward(
        self, logits: Tensor, target: Labelled, total_weights: Callable[[], Tensor]
    ) -> tuple[Tensor, StepOutput]:
        penalties = self._penalty(logits) if self._penalty is not None else None
        totals = total_weights()
        losses = task_losses(logits, target, totals, penalties)
        return losses, StepOutput(losses.detach(), logits.detach(), target, totals)
