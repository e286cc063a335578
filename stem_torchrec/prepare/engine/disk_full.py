"""A full disk in words: what is needed, and what is free."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.errors import EnvironmentFailure

_GIB = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# DuckDB's errors have no number.
_WORDS = re.compile(r"No space left|File too large|max_temp_directory_size|quota", re.IGNORECASE)


def free_bytes(folder: Path) -> int:
    """What is free for all that a building folder will hold."""
    return shutil.disk_usage(folder).free + _written_bytes(folder)


def is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return _WORDS.search(str(error)) is not None


def disk_full(folder: Path, needed_bytes: int | None) -> EnvironmentFailure:
    """The error for the building folder's disk."""
    needed = "" if needed_bytes is None else f"up to {needed_bytes / _GIB:.2f} GiB are needed, "
    return EnvironmentFailure(
        f"the disk of {str(folder.parent)!r} is full: {needed}{free_bytes(folder) / _GIB:.2f} GiB "
        "are free now that what was written is removed again"
    )


@contextmanager
def disk_full_named(folder: Path, needed_bytes: int) -> Iterator[None]:
    """Say of a full disk what the block needs.

    Raises:
        EnvironmentFailure: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(folder, needed_bytes) from error
        raise


def _written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
