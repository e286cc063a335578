"""The next batches' way to the ranks that hold their rows, while a step computes."""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import nn
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.pipeline_context import (
    PrefetchTrainPipelineContext,
    TrainPipelineContext,
)
from torchrec.distributed.train_pipeline.runtime_forwards import PrefetchPipelinedForward
from torchrec.distributed.train_pipeline.utils import _prefetch_embeddings

from stem_torchrec.config import PipelineName
from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.optimizers import fused_kernels


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


def input_pipeline(
    pipeline: PipelineName, model: nn.Module, device: torch.device, *, exchanges: bool = True
) -> Inputs:
    """What ``distributed.pipeline`` names, for a sharded model whose forward takes a batch.

    Args:
        exchanges: the lookup sends ids to other ranks, so that the pipeline has to do it before.
    """
    if pipeline == "base":
        return OneByOne(device)
    if not exchanges:
        return CopiedAhead(device)
    if pipeline == "prefetch":
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


class CopiedAhead:
    """Batch i + 1 is copied to the device while batch i computes; there is nobody to send ids to.

    On a GPU on a stream of its own.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | None = None

    def begin(self, batches: Iterator[Batch]) -> Batch:
        batch = self._next if self._next is not None else self._copied(batches)
        if batch is None:
            raise StopIteration
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            batch.record_stream(current)
        self._next = self._copied(batches)
        return batch

    def exchange_next(self) -> None:
        pass

    def end(self) -> None:
        pass

    def detach(self) -> None:
        pass

    def _copied(self, batches: Iterator[Batch]) -> Batch | None:
        batch = next(batches, None)
        if batch is None:
            return None
        with torch.cuda.stream(self._stream):  # does nothing without a stream
            return batch.to(self._device, non_blocking=True)


class InputPipeline(TrainPipelineSparseDist[Batch, Any]):
    """TorchRec's pipeline of inputs, for a step that is not its own.

    While batch i computes, the ids of batch i + 1 travel to the ranks that hold their rows and
    batch i + 2 is copied to the device; on a GPU on streams of their own, on a CPU in order.

    Args:
        model: a sharded model whose forward takes a batch. It is traced for its tables' input,
            and its tables then take what has been exchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        context_type: type[TrainPipelineContext] = TrainPipelineContext,
    ) -> None:
        # Optimizers are the step's affair.
        super().__init__(model, cast(Any, None), device, context_type=context_type)

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


class PrefetchPipeline(InputPipeline):
    """Also brings the rows of ``fused_uvm_caching`` tables into their caches one batch ahead.

    The rows of batch i + 1 come, on a stream of their own, before the tables' backward of batch i:
    the kernels have FBGEMM's ``prefetch_pipeline``, which holds a batch's rows in the cache until
    its backward and corrects what both batches have. Tables without a cache are left alone, so on
    a CPU the steps are those of ``InputPipeline``. TorchRec's ``PrefetchTrainPipelineSparseDist``
    has other inner calls in each version; those used here are the same in all.
    """

    _pipelined_forward_type = PrefetchPipelinedForward

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, device, PrefetchTrainPipelineContext)
        cuda = device.type == "cuda"
        self._prefetch_stream = torch.cuda.Stream(device) if cuda else None
        self._forward_stream = torch.cuda.current_stream(device) if cuda else None

    def begin(self, batches: Iterator[Batch]) -> Batch:
        resumed = not self._model_attached and len(self.batches) > 0
        batch = super().begin(batches)
        if resumed:  # attaching has sent its ids again
            self.wait_sparse_data_dist(self.contexts[0])
        if not self.contexts[0].module_input_post_prefetch:
            self._prefetch(0)
        self._wait_for_prefetch()
        return batch

    def exchange_next(self) -> None:
        super().exchange_next()
        if len(self.batches) > 1:
            self._prefetch(1)

    def detach(self) -> nn.Module:
        """Empty the caches: FBGEMM hands what has been prefetched to whoever looks up next."""
        if self._model_attached:
            for context in self.contexts:
                context.module_input_post_prefetch.clear()
                context.module_contexts_post_prefetch.clear()
            self._wait_for_prefetch()
            if self._device.type == "cuda":
                self._empty_caches()
        return cast(nn.Module, super().detach())

    def _wait_for_prefetch(self) -> None:
        if self._forward_stream is not None and self._prefetch_stream is not None:
            self._forward_stream.wait_stream(self._prefetch_stream)

    def _empty_caches(self) -> None:
        for kernel in fused_kernels(self._model):
            kernel.flush()
            kernel.reset_cache_states()
            kernel.lxu_cache_locking_counter.zero_()
            kernel.timesteps_prefetched.clear()
            kernel.lxu_cache_locations_list.clear()

    def _prefetch(self, place: int) -> None:
        """Bring the rows of a batch in flight, whose ids have been exchanged."""
        context = self.contexts[place]
        with self._stream_context(self._prefetch_stream):
            exchanged = _prefetch_embeddings(
                self.batches[place],
                context,
                self._pipelined_modules,
                self._device,
                self._stream_context,
                self._data_dist_stream,
                self._forward_stream,
            )
        for name, ids in exchanged.items():
            context.module_input_post_prefetch[name] = ids
            context.module_contexts_post_prefetch[name] = context.module_contexts.pop(name)
