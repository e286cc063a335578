"""The next batches' way to the ranks that hold their rows, while a step computes."""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

from stem_torchrec.config import PipelineName
from stem_torchrec.data.batch import Batch


class Inputs(Protocol):
    """Where a step's batches come from. A step calls ``begin``, ``exchange_next`` and ``end``, each
    once and in this order; the tables are looked up after ``begin``, and step after
    ``exchange_next``."""

    def begin(self, batches: Iterator[Batch]) -> Batch:
        """The batch whose turn it is, on the device. Collective.

        Raises:
            StopIteration: the batches, those in flight included, have run out.
        """

    def exchange_next(self) -> None:
        """Send the next batch's ids on their way, now that their numbers are known. Collective."""

    def end(self) -> None:
        """The batch is done with; the next one's turn comes."""

    def detach(self) -> Any:
        """Let the model's forward be called with other batches; those in flight wait."""


def input_pipeline(pipeline: PipelineName, model: nn.Module, device: torch.device) -> Inputs:
    """What ``distributed.pipeline`` names, for a sharded model whose forward takes a batch."""
    if pipeline == "base":
        return OneByOne(device)
    if pipeline == "prefetch":
        from stem_torchrec.distributed.prefetch_inputs import PrefetchPipeline  # of a GPU

        return PrefetchPipeline(model, device)
    return InputPipeline(model, device)


class OneByOne:
    """Nothing is under way while a step computes; its lookup exchanges its ids."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def begin(self, batches: Iterator[Batch]) -> Batch:
        return next(batches).to(self._device, non_blocking=True)

    def exchange_next(self) -> None:
        pass

    def end(self) -> None:
        pass

    def detach(self) -> None:
        pass


class InputPipeline(TrainPipelineSparseDist[Batch, Any]):
    """TorchRec's pipeline of inputs, for a step that is not its own.

    While batch i computes, the ids of batch i + 1 travel to the ranks that hold their rows and
    batch i + 2 is copied to the device; on a GPU on streams of their own, on a CPU in order.

    Args:
        model: a sharded model whose forward takes a batch. It is traced for its tables' input,
            and its tables then take what has been exchanged.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, cast(Any, None), device)  # optimizers are the step's affair

    def begin(self, batches: Iterator[Batch]) -> Batch:
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
        if len(self.batches) > 1:
            self.wait_sparse_data_dist(self.contexts[1])

    def end(self) -> None:
        self.dequeue_batch()
