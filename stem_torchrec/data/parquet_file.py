"""Open Parquet files wherever they lie, and say what is wrong with one."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

_TAIL_BYTES = 8
"""The footer's length and the magic bytes after it."""


def open_parquet_file(file: Place, *, verify: bool = False) -> pq.ParquetFile:
    """The file, its footer read; the caller closes it.

    Args:
        verify: compare what is read with the checksums of its pages, where the file has some.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read; see ``unreadable``.
    """
    if isinstance(file, Path):
        return pq.ParquetFile(file, page_checksum_verification=verify)
    # A store is slow to answer: the column chunks of a row group are asked for together.
    return pq.ParquetFile(
        file.key,
        filesystem=file.filesystem,
        pre_buffer=True,
        page_checksum_verification=verify,
    )


def footer_digest(file: Place, footer_bytes: int) -> str:
    """A checksum of a file's size and footer, which holds the sizes and bounds of all columns.

    Args:
        footer_bytes: as ``FileMetaData.serialized_size`` tells.

    Raises:
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb", buffering=0) as stream:
        stream.seek(max(0, size - footer_bytes - _TAIL_BYTES))
        content = stream.read()
    return hashlib.sha256(f"{size}:".encode() + content).hexdigest()[:32]


def unreadable(where: object, error: Exception) -> UserError:
    """The error for a file, or a part of it, that was not read."""
    from stem_torchrec.storage.stores import is_unreachable, store_error

    if is_unreachable(error):
        return store_error(where, error)
    return UserError(f"{where}: cannot be read as Parquet ({error})")


def type_family(found: pa.DataType) -> str:
    """The type without its width, in which files may differ."""
    if types.is_dictionary(found):
        return type_family(found.value_type)
    if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
        return f"list of {type_family(found.value_type)}"
    if types.is_integer(found):
        return "integer"
    if types.is_string(found) or types.is_large_string(found):
        return "text"
    return "float" if types.is_floating(found) else str(found)
