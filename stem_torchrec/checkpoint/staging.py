"""A copy of a state in host memory, for saving it while training goes on."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.checkpoint.staging import AsyncStager


class HostCopy(AsyncStager):
    """Copies tensors and local shards to buffers on the host that are used again in each save.

    DCP's own ``DefaultStager`` cannot copy a ShardedTensor, and its ``BlockingAsyncStager`` takes
    new memory in each save. One copy of this rank's state stays in host memory, page-locked where
    it comes from a GPU.
    """

    _synchronize_after_execute = False

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The same state on the host; valid until the next call. Not collective."""
        staged: dict[str, Any] = self._copy("", state_dict)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return staged

    def synchronize_staging(self) -> None:
        """``stage`` has waited already."""

    def close(self) -> None:
        self._buffers.clear()

    def _copy(self, path: str, value: Any) -> Any:
        if isinstance(value, ShardedTensor):
            return self._copy_shards(path, value)
        if isinstance(value, Tensor):
            return self._copy_tensor(path, value, page_locked=value.is_cuda)
        if isinstance(value, dict):
            return {key: self._copy(f"{path}/{key}", part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._copy(f"{path}/{i}", part) for i, part in enumerate(value))
        return copy.deepcopy(value)

    def _copy_tensor(self, path: str, value: Tensor, *, page_locked: bool) -> Tensor:
        value = value.detach()
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=page_locked)
            self._buffers[path] = buffer
        return buffer.copy_(value, non_blocking=True)

    def _copy_shards(self, path: str, value: ShardedTensor) -> ShardedTensor:
        """Page-locked if the shards of all ranks come from GPUs: what is said of the whole tensor
        holds for each of its shards, and torch compares both.
        """
        whole = copy.deepcopy(value.metadata())
        page_locked = all(_on_gpu(place.placement) for place in whole.shards_metadata)
        whole.tensor_properties.requires_grad = False
        whole.tensor_properties.pin_memory = page_locked
        by_place = {}
        for place in whole.shards_metadata:
            place.placement._device = torch.device("cpu")
            by_place[tuple(place.shard_offsets)] = place
        shards = [
            Shard(
                self._copy_tensor(f"{path}/{i}", shard.tensor, page_locked=page_locked),
                by_place[tuple(shard.metadata.shard_offsets)],
            )
            for i, shard in enumerate(value.local_shards())
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, whole, process_group=value._process_group
        )


def _on_gpu(placement: Any) -> bool:
    return bool(placement.device().type == "cuda")
