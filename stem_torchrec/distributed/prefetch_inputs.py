"""Rows of tables on the host come into their caches on the device one batch ahead."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist
from torchrec.distributed.train_pipeline.utils import _wait_for_batch

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.optimizers import fused_kernels


class PrefetchPipeline(PrefetchTrainPipelineSparseDist[Batch, Any]):
    """TorchRec's pipeline for ``fused_uvm_caching`` tables, for a step that is not its own.

    While batch i computes, the rows of batch i + 1 are brought into the tables' caches on a stream
    of its own, and batch i + 2 is copied to the device. The tables' kernels have FBGEMM's
    ``prefetch_pipeline``, which holds a batch's rows in the cache from here to its backward.

    Args:
        model: as that of ``InputPipeline``; its caching tables are on a GPU.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, cast(Any, None), device)  # optimizers are the step's affair

    def begin(self, batches: Iterator[Batch]) -> Batch:
        if not self._model_attached:
            self.attach(self._model)
            self._prefetch_again()
        self.fill_pipeline(batches)
        if not self.batches:
            raise StopIteration
        self._set_module_context(self.contexts[0])
        _wait_for_batch(cast(Any, self.batches[0]), self._prefetch_stream)
        self.enqueue_batch(batches)
        if len(self.batches) > 1:
            self.wait_sparse_data_dist(self.contexts[1])
        return cast(Batch, self.batches[0])

    def exchange_next(self) -> None:
        if len(self.batches) > 1:
            self._prefetch(cast(Any, self.contexts[1]))

    def end(self) -> None:
        if len(self.batches) > 2:
            self.start_sparse_data_dist(self.batches[2], self.contexts[2])
        self.dequeue_batch()

    def detach(self) -> nn.Module:
        """Other batches have caches without a batch's rows in them: FBGEMM hands what has been
        prefetched to whoever looks up next."""
        if self._model_attached:
            torch.cuda.current_stream().wait_stream(cast(Any, self._prefetch_stream))
            for kernel in fused_kernels(self._model):
                kernel.flush()
                kernel.reset_cache_states()
                kernel.lxu_cache_locking_counter.zero_()
                kernel.timesteps_prefetched.clear()
                kernel.lxu_cache_locations_list.clear()
        return cast(nn.Module, super().detach())

    def _prefetch_again(self) -> None:
        """The rows of the batch whose turn it is, whose ids have been exchanged before."""
        if not self.contexts:
            return
        context = cast(Any, self.contexts[0])
        with self._stream_context(cast(Any, self._prefetch_stream)):
            for module in self._pipelined_modules:
                name = cast(Any, module.forward).name
                module.prefetch(
                    ctx=context.module_contexts_post_prefetch[name],
                    dist_input=context.module_input_post_prefetch[name],
                    forward_stream=self._default_stream,
                )
