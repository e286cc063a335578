"""One train step on all ranks, and its counterpart for prediction."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.dense_step import DenseOutput, DenseStep
from stem_torchrec.distributed.inputs import Inputs
from stem_torchrec.distributed.optimizers import Optimizers
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.recommender import Recommender


class StepOutput(NamedTuple):
    """A step that is done.

    Attributes:
        batch: what it was to train on, on the device.
        dense: losses, logits and labels.
        skipped: a loss or gradient was not finite on some rank: no weight, table or optimizer state
            has changed on any rank.
    """

    batch: Batch
    dense: DenseOutput
    skipped: bool


class TrainStep:
    """ids -> pooled features -> losses -> gradients -> weights and tables.

    The ids of the next batches travel meanwhile (``inputs``). Before anything is changed,
    the losses, the gradients of the pooled features and those of the dense weights are looked at:
    if one is not finite on any rank, the step is left out on all. That costs a pass over them, one
    all-reduce of one number, and a wait for the device: whether the tables' backward runs is
    decided on the host.

    Args:
        recommender: sharded.
        undo: called after a step that is left out, for what its forward changed.
    """

    def __init__(
        self,
        recommender: Recommender,
        dense_step: DenseStep,
        optimizers: Optimizers,
        ranks: Ranks,
        inputs: Inputs,
        undo: Callable[[], None] | None = None,
    ) -> None:
        self._recommender = recommender
        self._dense_step = dense_step
        self._optimizers = optimizers
        self._ranks = ranks
        self._undo = undo
        self._inputs = inputs

    def __call__(self, batches: Iterator[Batch]) -> StepOutput:
        """Train on the next batch. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        batch = self._inputs.begin(batches)
        pooled = self._recommender.embeddings(batch.sparse)
        dense = self._dense_step(pooled, batch)
        self._inputs.exchange_next()
        skipped = self._ranks.any(~dense.is_finite())
        if not skipped:
            self._update(pooled, dense)
        elif self._undo is not None:
            self._undo()
        self._inputs.end()
        return StepOutput(batch, dense, skipped)

    def _update(self, pooled: dict[str, Tensor], dense: DenseOutput) -> None:
        """Tables step in their backward, if they are fused; the rest after it. Collective."""
        mean = self._ranks.joined_mean(dense.weights)  # travels during the tables' backward
        self._optimizers.forget_gradients()
        torch.autograd.backward([pooled[owner] for owner in dense.pooled], [*dense.pooled.values()])
        for weight, gradient in zip(self._optimizers.dense, mean(), strict=True):
            weight.grad = gradient
        self._optimizers.stepped.step()

    @torch.no_grad()
    def predict(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch on the device with its logits (B, T). Collective; batches in flight wait."""
        self._inputs.detach()
        self._recommender.eval()
        try:
            for batch in batches:
                on_device = batch.to(self._ranks.device, non_blocking=True)
                yield on_device, self._recommender(on_device)
        finally:
            self._recommender.train()
