"""Tensors in a file that is mapped into memory: the safetensors format, read and written here.

Eight bytes with the length of a JSON text, the text, and the tensors' bytes, little-endian. The
text names type, shape and place of each; nothing in such a file is code.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stem_torchrec.errors import UserError

_TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20

Tensors = dict[str, np.memmap]


def create_tensors(file: Path, wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> Tensors:
    """Make a file for tensors of these types (``F32``, ``F16``, ``I8``) and shapes, to be filled.

    Args:
        wanted: in the order of the file; wide types first keeps all of them aligned.
    """
    header, position = {}, 0
    for name, (kind, shape) in wanted.items():
        stop = position + int(np.prod(shape, dtype=np.int64)) * _TYPES[kind].itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        opened.truncate(_LENGTH_BYTES + len(text) + position)
    return open_tensors(file, writable=True)


def open_tensors(file: Path, *, writable: bool = False) -> Tensors:
    """The tensors of a file, mapped: processes that read it share one copy.

    Without ``writable`` what is written to them stays in this process.

    Raises:
        UserError: the file is missing, or not in the format.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if length > min(size, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        mapped = np.memmap(file, np.uint8, "r+" if writable else "c", _LENGTH_BYTES + length)
        return {name: _part(mapped, part) for name, part in header.items() if name[:2] != "__"}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{file}: is no safetensors file, or is damaged") from None


def _part(mapped: np.memmap, part: Mapping[str, Any]) -> Any:
    start, stop = part["data_offsets"]
    if not 0 <= start <= stop <= len(mapped):
        raise ValueError("a tensor lies outside the file")
    return mapped[start:stop].view(_TYPES[part["dtype"]]).reshape(part["shape"])
