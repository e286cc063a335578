"""Open Parquet files wherever they lie, and say what is wrong with one."""

from pathlib import Path

import pyarrow.parquet as pq

from stem_torchrec.errors import UserError
from stem_torchrec.place import Place


def open_parquet_file(file: Place) -> pq.ParquetFile:
    """The file, its footer read; the caller closes it.

    Raises:
        OSError, pyarrow.ArrowException: it cannot be read; see ``unreadable``.
    """
    if isinstance(file, Path):
        return pq.ParquetFile(file)
    # A store is slow to answer: the column chunks of a row group are asked for together.
    return pq.ParquetFile(file.key, filesystem=file.filesystem, pre_buffer=True)


def unreadable(where: object, error: Exception) -> UserError:
    """The error for a file, or a part of it, that was not read."""
    from stem_torchrec.stores import is_unreachable, store_error

    if is_unreachable(error):
        return store_error(where, error)
    return UserError(f"{where}: cannot be read as Parquet ({error})")
