"""The pipelined train step and its counterpart for evaluation."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.batch import Batch
from stem_torchrec.distributed.guard import GuardedStep
from stem_torchrec.distributed.interruption import Interruption
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.optim import Optimizers
from stem_torchrec.recommender import StepOutput


class Skipped(NamedTuple):
    """What a step was to train on that was left out, on this rank.

    Attributes:
        batch: on the device.
        losses: (T,), this rank's share.
    """

    batch: Batch
    losses: Tensor


class Pipeline:
    """Runs train steps; while one computes, the next batches are copied and exchanged.

    On GPU the copy to the device and the all-to-all of the ids run on streams of their own
    (TorchRec's ``TrainPipelineSparseDist``); on CPU the same code runs without streams.

    Args:
        undo: called after a step that is left out, for what its forward and backward changed.

    Attributes:
        skipped: the last step, if a loss or gradient of it was not finite on any rank: no weight,
            table or optimizer state has changed on any rank. Else None.
        interruption: what watches over steps and evaluation; None for nothing.
    """

    def __init__(
        self,
        model: DistributedModelParallel,
        optimizers: Optimizers,
        ranks: Ranks,
        undo: Callable[[], None] | None = None,
    ) -> None:
        self._model = model
        self._device = ranks.device
        self._guard = GuardedStep(model, optimizers, ranks)
        self._pipeline = TrainPipelineSparseDist(
            model, self._guard, ranks.device, custom_model_fwd=self._forward
        )
        self._undo = undo
        self._batch: Batch | None = None
        self.skipped: Skipped | None = None
        self.interruption: Interruption | None = None

    def step(self, batches: Iterator[Batch]) -> StepOutput:
        """Forward, backward and update on the next batch. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        output = self._pipeline.progress(batches)
        self.skipped = None
        if self._guard.skipped:
            assert self._batch is not None
            self.skipped = Skipped(self._batch, output.losses)
            if self._undo is not None:
                self._undo()
        self._batch = None
        return output

    def _forward(self, batch: Batch | None) -> tuple[Tensor, StepOutput]:
        self._batch = batch
        return self._guard.forward(batch)

    @torch.no_grad()
    def predict(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch on the device with its logits (B, T). Collective; batches in flight wait.

        Raises:
            Stopped: the ranks have agreed to stop.
        """
        model = self._pipeline.detach()
        model.eval()
        try:
            for batch in batches:
                on_device = batch.to(self._device, non_blocking=True)
                yield on_device, self._model.module.recommender(on_device)
                if self.interruption is not None:
                    self.interruption.check()
        finally:
            model.train()
