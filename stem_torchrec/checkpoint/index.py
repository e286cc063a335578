"""Where each tensor and value of a checkpoint lies (``index.json``).

``torch.distributed.checkpoint`` (DCP) keeps this in a pickle, which runs whatever code it holds
when it is read. Here it is JSON, each entry checked: a checkpoint may come from anywhere.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from stem_torchrec.checkpoint.manifest import Damaged, Manifest, read_manifest
from stem_torchrec.checkpoint.pickled_index import PICKLED_INDEX, read_pickled
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

INDEX = "index.json"

_Whole = Annotated[int, Field(ge=0, lt=2**63)]
_DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Extent(_Strict):
    """Bytes of one of the checkpoint's files."""

    file: str
    start: _Whole
    num_bytes: _Whole


class Chunk(_Strict):
    """A block of a tensor, as ``torch.save`` has written it."""

    offsets: tuple[_Whole, ...]
    sizes: tuple[_Whole, ...]
    extent: Extent


class TensorEntry(_Strict):
    """A tensor of any number of chunks. ``path`` leads to it in the nested state."""

    dtype: str
    size: tuple[_Whole, ...]
    chunks: tuple[Chunk, ...]
    path: tuple[str | int, ...]


class ValueEntry(_Strict):
    """Anything but a tensor: numbers, text, lists; as ``torch.save`` has written it."""

    extent: Extent
    path: tuple[str | int, ...]


class Index(_Strict):
    """What a checkpoint holds, by the names that DCP gives it."""

    tensors: dict[str, TensorEntry]
    values: dict[str, ValueEntry]


def read_index(folder: Place) -> Index:
    """The index of a checkpoint, also of one whose index is a pickle. Runs nothing of it.

    Raises:
        UserError: the checkpoint is not whole, or its index is not what a save writes, or leads
            out of its files.
    """
    try:
        manifest = read_manifest(folder)
    except Damaged as damage:
        raise UserError(f"{folder}: {damage}") from None
    name = INDEX if manifest.format > 1 else PICKLED_INDEX
    if name not in {file.name for file in manifest.files}:
        raise UserError(f"{folder}: {name} is missing")
    content = (folder / name).read_bytes()
    try:
        if name == INDEX:
            index = Index.model_validate_json(content)
        else:
            index = Index.model_validate(read_pickled(content))
        _check(index, manifest)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name}: not what a save writes: {_line(error)}") from None
    return index


def index_of(metadata: Metadata, places: Mapping[MetadataIndex, _StorageInfo]) -> Index:
    """The index for what DCP has written."""
    paths: Mapping[str, tuple[Any, ...]] = metadata.planner_data or {}
    tensors, values = {}, {}
    for name, entry in metadata.state_dict_metadata.items():
        path = tuple(paths.get(name, (name,)))
        if isinstance(entry, BytesStorageMetadata):
            values[name] = ValueEntry(extent=_extent(places[MetadataIndex(name)]), path=path)
            continue
        chunks = tuple(
            Chunk(
                offsets=tuple(chunk.offsets),
                sizes=tuple(chunk.sizes),
                extent=_extent(places[MetadataIndex(name, chunk.offsets)]),
            )
            for chunk in entry.chunks
        )
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        tensors[name] = TensorEntry(dtype=dtype, size=tuple(entry.size), chunks=chunks, path=path)
    return Index(tensors=tensors, values=values)


def metadata_of(index: Index) -> Metadata:
    """The inverse of ``index_of``, for DCP to load with."""
    metadata: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places = {}
    for name, tensor in index.tensors.items():
        chunks = [
            ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
            for chunk in tensor.chunks
        ]
        properties = TensorProperties(dtype=_DTYPES[tensor.dtype])
        metadata[name] = TensorStorageMetadata(properties, torch.Size(tensor.size), chunks)
        for chunk in tensor.chunks:
            places[MetadataIndex(name, chunk.offsets)] = _place(chunk.extent)
    for name, value in index.values.items():
        metadata[name] = BytesStorageMetadata()
        places[MetadataIndex(name)] = _place(value.extent)
    paths = {name: tensor.path for name, tensor in index.tensors.items()}
    paths |= {name: value.path for name, value in index.values.items()}
    return Metadata(metadata, planner_data=paths, storage_data=places)


def _extent(place: _StorageInfo) -> Extent:
    return Extent(file=place.relative_path, start=place.offset, num_bytes=place.length)


def _place(extent: Extent) -> _StorageInfo:
    return _StorageInfo(extent.file, extent.start, extent.num_bytes)


def _check(index: Index, manifest: Manifest) -> None:
    """Raise ValueError for what leads out of the files or makes a tensor larger than its bytes."""
    sizes = {file.name: file.size for file in manifest.files}
    for name, extent in _extents(index):
        if extent.start + extent.num_bytes > sizes.get(extent.file, -1):
            raise ValueError(f"{name} lies outside of the files: {extent.file!r}")
    for name, tensor in index.tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} has the type {tensor.dtype!r}")
        for chunk in tensor.chunks:
            _check_chunk(name, tensor, chunk)
        held = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
        if held != math.prod(tensor.size):
            raise ValueError(f"{name} has {math.prod(tensor.size)} values, its chunks {held}")


def _check_chunk(name: str, tensor: TensorEntry, chunk: Chunk) -> None:
    ends = [start + size for start, size in zip(chunk.offsets, chunk.sizes, strict=True)]
    if any(end > size for end, size in zip(ends, tensor.size, strict=True)):
        raise ValueError(f"{name} of size {list(tensor.size)} has a chunk that ends at {ends}")
    if math.prod(chunk.sizes) * _DTYPES[tensor.dtype].itemsize > chunk.extent.num_bytes:
        raise ValueError(
            f"{name} has a chunk {list(chunk.sizes)} in {chunk.extent.num_bytes} bytes"
        )


def _extents(index: Index) -> Iterator[tuple[str, Extent]]:
    for name, tensor in index.tensors.items():
        for chunk in tensor.chunks:
            yield name, chunk.extent
    for name, value in index.values.items():
        yield name, value.extent


def _line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error) or type(error).__name__
