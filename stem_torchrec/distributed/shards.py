"""Blocks of tensors, whole or sharded, as views."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensorBase
from torch.distributed._shard.sharding_spec import ShardMetadata

Bounds: TypeAlias = tuple[int, int]
"""First index and the one after the last."""


def block(value: Tensor, *bounds: Bounds) -> Tensor:
    """A view of some indices of the first dimensions; sharded as ``value`` is.

    Offsets of the block's shards count from its own corner. Not collective.
    """
    if not isinstance(value, ShardedTensor):
        return value.detach()[tuple(slice(*bound) for bound in bounds)]
    whole = value.metadata()
    full = [*bounds, *((0, size) for size in whole.size[len(bounds) :])]
    places = [piece for place in whole.shards_metadata if (piece := _within(place, full))]
    shards = []
    for shard in value.local_shards():
        if piece := _within(shard.metadata, full):
            starts = [
                max(first, offset) - offset
                for (first, _), offset in zip(full, shard.metadata.shard_offsets, strict=True)
            ]
            index = [slice(a, a + n) for a, n in zip(starts, piece.shard_sizes, strict=True)]
            shards.append(Shard(shard.tensor.detach()[tuple(index)], piece))
    size = torch.Size(stop - first for first, stop in full)
    return _of_shards(value, shards, type(whole)(places, size, whole.tensor_properties))


def copied(value: Tensor) -> Tensor:
    """The same in memory of its own."""
    if not isinstance(value, ShardedTensor):
        return value.detach().clone()
    shards = [Shard(shard.tensor.clone(), shard.metadata) for shard in value.local_shards()]
    return _of_shards(value, shards, value.metadata())


def local_tensors(value: Tensor) -> list[Tensor]:
    """This rank's part: its shards' tensors, or all of a tensor that is whole."""
    if isinstance(value, ShardedTensor):
        return [shard.tensor.detach() for shard in value.local_shards()]
    return [value.detach()]


def write(target: Tensor, values: Sequence[Tensor]) -> None:
    """Write this rank's part; what lies there already is not written again."""
    for to, value in zip(local_tensors(target), values, strict=True):
        if to.data_ptr() != value.data_ptr():
            to.copy_(value)


def _within(place: ShardMetadata, bounds: Sequence[Bounds]) -> ShardMetadata | None:
    """What of a shard lies in a block; None if nothing does."""
    offsets, sizes = [], []
    for (first, stop), offset, size in zip(
        bounds, place.shard_offsets, place.shard_sizes, strict=True
    ):
        start = max(first, offset)
        offsets.append(start - first)
        sizes.append(min(stop, offset + size) - start)
    if min(sizes) <= 0:
        return None
    return ShardMetadata(offsets, sizes, place.placement)


def _of_shards(like: ShardedTensor, shards: list[Shard], metadata: object) -> ShardedTensor:
    # ShardedTensor's own way to be made takes contiguous shards alone; its base's takes views.
    made = ShardedTensorBase._init_from_local_shards_and_global_metadata(shards, metadata)
    made._process_group = like._process_group
    return made
