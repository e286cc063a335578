"""The pipelined train step and its counterpart for evaluation."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.batch import Batch
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.optim import Optimizers
from stem_torchrec.recommender import StepOutput


class Pipeline:
    """Runs train steps; while one computes, the next batches are copied and exchanged.

    On GPU the copy to the device and the all-to-all of the ids run on streams of their own
    (TorchRec's ``TrainPipelineSparseDist``); on CPU the same code runs without streams.
    """

    def __init__(
        self, model: DistributedModelParallel, optimizers: Optimizers, ranks: Ranks
    ) -> None:
        self._model = model
        self._device = ranks.device
        self._pipeline = TrainPipelineSparseDist(model, optimizers.stepped, ranks.device)

    def step(self, batches: Iterator[Batch]) -> StepOutput:
        """Forward, backward and update on the next batch. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        return self._pipeline.progress(batches)

    @torch.no_grad()
    def predict(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch on the device with its logits (B, T). Collective; batches in flight wait."""
        model = self._pipeline.detach()
        model.eval()
        try:
            for batch in batches:
                on_device = batch.to(self._device, non_blocking=True)
                yield on_device, self._model.module.recommender(on_device)
        finally:
            model.train()
