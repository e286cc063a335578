"""One train step on all ranks, and its counterpart for prediction."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.distributed.forward_backward import Gradients
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

    The ids of the next batches travel meanwhile (``inputs``). A step whose losses or gradients are
    not finite on some rank is left out on all: tables get gradients of zero, which leave them and
    their optimizer's state as they are, bit for bit; what steps after the backward is a
    ``GuardedOptimizer``. Nothing waits for the device, but where the tables' optimizer moves on
    without a gradient (``Optimizers.need_gradients``): there the host decides, and their backward
    does not run.

    Args:
        recommender: sharded.
        gradients: a batch's, as ``ForwardBackward`` makes them. Collective.
        precision: of the model's products; those of its forward are the dense step's own affair.
        settle: called after each step with the () bool of a step that is left out: what its
            backward found out is kept now, or not.
    """

    def __init__(
        self,
        recommender: Recommender,
        gradients: Callable[[Batch], Gradients],
        optimizers: Optimizers,
        ranks: Ranks,
        inputs: Inputs,
        precision: DensePrecision = FLOAT32,
        settle: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._recommender = recommender
        self._gradients = gradients
        self._optimizers = optimizers
        self._ranks = ranks
        self._settle = settle
        self._inputs = inputs
        self._precision = precision

    def __call__(self, batches: Iterator[Batch]) -> StepOutput:
        """Train on the next batch. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        batch = self._inputs.begin(batches)
        with self._precision.products():
            found = self._gradients(batch)
        self._inputs.exchange_next()
        if not (self._optimizers.need_gradients and bool(found.skipped)):
            self._update(found)
        if self._settle is not None:
            self._settle(found.skipped)
        self._inputs.end()
        return StepOutput(batch, found.dense, found.skipped)

    def _update(self, found: Gradients) -> None:
        """Tables step in their backward, if they are fused; the rest after it. Collective."""
        mean = self._ranks.joined_mean(found.dense.weights)  # travels during the tables' backward
        self._optimizers.forget_gradients()
        found.sums.backward(found.to_sums)
        for weight, gradient in zip(self._optimizers.dense, mean(), strict=True):
            weight.grad = gradient
        self._optimizers.step(found.skipped)

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
