"""The next batches' way to the ranks that hold their rows, while a step computes."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.data.batch import Batch


class InputPipeline(TrainPipelineSparseDist[Batch, Any]):
    """TorchRec's pipeline of inputs, for a step that is not its own.

    While batch i computes, the ids of batch i + 1 travel to the ranks that hold their rows and
    batch i + 2 is copied to the device; on a GPU on streams of their own, on a CPU in order. A step
    calls ``begin``, ``exchange_next`` and ``end``, each once.

    Args:
        model: a sharded model whose forward takes a batch. It is traced for its tables' input,
            and its tables then take what has been exchanged.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, cast(Any, None), device)  # optimizers are the step's affair

    def begin(self, batches: Iterator[Batch]) -> Batch:
        """The batch whose turn it is, on the device, its ids exchanged. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """
        if not self._model_attached:
            self.attach(self._model)
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        self._wait_for_batch()
        if len(self.batches) > 1:
            self.start_sparse_data_dist(self.batches[1], self.contexts[1])
        self.enqueue_batch(batches)
        return cast(Batch, self.batches[0])

    def exchange_next(self) -> None:
        """Send the next batch's ids on their way, now that their numbers are known. Collective."""
        if len(self.batches) > 1:
            self.wait_sparse_data_dist(self.contexts[1])

    def end(self) -> None:
        """The batch is done with; the next one's turn comes."""
        self.dequeue_batch()
