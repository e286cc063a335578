"""The index of checkpoints of format 1: DCP's ``.metadata``, a pickle.

It is read with stand-ins for the few classes that belong there, made anew for each reading. No
other name is looked up, nothing is imported, and no code of the classes themselves runs.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

PICKLED_INDEX = ".metadata"

_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata")),
    *((_METADATA, name) for name in ("BytesStorageMetadata", "TensorProperties")),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}
_DTYPES = {
    *("float64", "float32", "float16", "bfloat16", "bool", "uint8"),
    *("int8", "int16", "int32", "int64"),
}


def read_pickled(content: bytes) -> dict[str, Any]:
    """A pickled index as ``Index`` takes it; what is in it is not checked yet.

    Raises:
        ValueError: it is no pickle, or holds what does not belong into an index.
    """
    try:
        return _content(_Unpickler(content).load())
    except Exception as error:  # a pickle's instructions may fail in any way
        raise ValueError(f"{type(error).__name__}: {error}") from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self._known: dict[tuple[str, str], Any] = {key: _stand_in(key[1]) for key in _CLASSES}
        self._known[("torch", "Size")] = tuple
        self._known |= {("torch", name): name for name in _DTYPES}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into it")
        return self._known[module, name]


def _stand_in(name: str) -> type:
    """A class that keeps what a pickle gives to it."""

    def make(cls: type, *args: Any) -> Any:
        return object.__new__(cls)

    def set_state(self: Any, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    methods: dict[str, Callable[..., Any]] = {"__new__": make, "__setstate__": set_state}
    return type(name, (), {**methods, "__init__": lambda self, *args: None})


def _content(metadata: Any) -> dict[str, Any]:
    paths: Mapping[str, Any] = metadata.planner_data or {}
    places = {
        (key.fqn, getattr(key, "offset", None)): {
            "file": place.relative_path,
            "start": place.offset,
            "num_bytes": place.length,
        }
        for key, place in metadata.storage_data.items()
    }
    tensors, values = {}, {}
    for name, entry in metadata.state_dict_metadata.items():
        path = tuple(paths.get(name, (name,)))
        if type(entry).__name__ == "BytesStorageMetadata":
            values[name] = {"extent": places[name, None], "path": path}
            continue
        chunks = [
            {
                "offsets": chunk.offsets,
                "sizes": chunk.sizes,
                "extent": places[name, chunk.offsets],
            }
            for chunk in entry.chunks
        ]
        dtype = entry.properties.state[0]
        tensors[name] = {"dtype": dtype, "size": entry.size, "chunks": tuple(chunks), "path": path}
    return {"tensors": tensors, "values": values}
