"""One train step on all ranks, and its counterpart for prediction."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.dense_step import Dense, DenseOutput
from stem_torchrec.distributed.inputs import Inputs
from stem_torchrec.distributed.optimizers import Optimizers
from stem_torchrec.distributed.precision import FLOAT32, DensePrecision
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.recommender import Recommender


class StepOutput(NamedTuple):
    """A step that is done, or under way on the device.

    Attributes:
        batch: what it was to train on, on the device.
        dense: losses, logits and labels.
        skipped: () bool on the device: a loss or gradient was not finite on some rank, and no
            weight, table or optimizer state has changed on any.
    """

    batch: Batch
    dense: DenseOutput
    skipped: Tensor


class TrainStep:
    """ids -> pooled features -> losses -> gradients -> weights and tables.

    The ids of the next batches travel meanwhile (``inputs``). Before anything is changed,
    the losses, the gradients of the pooled features and those of the dense weights are looked at:
    if one is not finite on any rank, the step is left out on all. That costs a pass over them and
    one all-reduce of one number, and is decided on the device: tables get gradients of zero, which
    leave them and their optimizer's state as they are, bit for bit; what steps after the backward
    is a ``GuardedOptimizer``. Nothing waits for the device, but where the tables' optimizer moves
    on without a gradient (``Optimizers.need_gradients``): there the host decides, and their
    backward does not run.

    Args:
        recommender: sharded.
        precision: of the model's products; those of its forward are the dense step's own affair.
        undo: called after each step with the () bool of a step that is left out, for what its
            forward changed.
    """

    def __init__(
        self,
        recommender: Recommender,
        dense_step: Dense,
        optimizers: Optimizers,
        ranks: Ranks,
        inputs: Inputs,
        precision: DensePrecision = FLOAT32,
        undo: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._recommender = recommender
        self._dense_step = dense_step
        self._optimizers = optimizers
        self._ranks = ranks
        self._undo = undo
        self._inputs = inputs
        self._precision = precision

    def __call__(self, batches: Iterator[Batch]) -> StepOutput:
        """Train on the next batch. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        batch = self._inputs.begin(batches)
        pooled = self._recommender.embeddings(batch.sparse)
        with self._precision.products():
            dense = self._dense_step(pooled, batch)
        self._inputs.exchange_next()
        skipped = self._ranks.any(~dense.is_finite())
        if not (self._optimizers.need_gradients and bool(skipped)):
            self._update(pooled, dense, skipped)
        if self._undo is not None:
            self._undo(skipped)
        self._inputs.end()
        return StepOutput(batch, dense, skipped)

    def _update(self, pooled: dict[str, Tensor], dense: DenseOutput, skipped: Tensor) -> None:
        """Tables step in their backward, if they are fused; the rest after it. Collective."""
        mean = self._ranks.joined_mean(dense.weights)  # travels during the tables' backward
        self._optimizers.forget_gradients()
        adjust = self._recommender.embeddings.adjust_gradient
        reached = [pooled[owner] for owner in dense.pooled]
        torch.autograd.backward(
            reached,
            [adjust(g, e, skipped) for g, e in zip(dense.pooled.values(), reached, strict=True)],
        )
        for weight, gradient in zip(self._optimizers.dense, mean(), strict=True):
            weight.grad = gradient
        self._optimizers.step(skipped)

    @torch.no_grad()
    def predict(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch on the device with its logits (B, T). Collective; batches in flight wait."""
        self._inputs.detach()
        self._recommender.eval()
        try:
            for batch in batches:
                on_device = batch.to(self._ranks.device, non_blocking=True)
                with self._precision.products():
                    logits = self._precision.forward(self._recommender, on_device)
                yield on_device, logits
        finally:
            self._recommender.train()
