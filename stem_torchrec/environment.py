"""Which errors of Python and its libraries are the machine's, and how they read as one line."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from stem_torchrec.errors import EnvironmentFailure

_OF_THE_MACHINE = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
        *(errno.EACCES, errno.EPERM),
        *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO),
        *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN),
    )
)
# What ``tempfile`` says, as a FileNotFoundError, where every disk it knows is full or read-only.
_NO_TEMPORARY = "No usable temporary directory"
# What torch says, as a plain RuntimeError, where the C library has no memory left.
_NO_MEMORY = "can't allocate memory"


def environment_failure(error: BaseException, place: object = None) -> EnvironmentFailure | None:
    """What an error says of the machine, as one line; None if it is not the machine's.

    Args:
        place: what was read or written, where the error does not name it.
    """
    if isinstance(error, EnvironmentFailure):
        return error
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        assert error.errno is not None
        where = error.filename2 or error.filename or place
        reason = os.strerror(error.errno)
        return EnvironmentFailure(reason if where is None else f"{_text(where)}: {reason}")
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY in str(error):
        return EnvironmentFailure(str(error.strerror))
    if _is_without_memory(error):
        first = str(error).partition("\n")[0]
        return EnvironmentFailure(f"not enough memory: {first}" if first else "not enough memory")
    return None


@contextmanager
def environment_failures(place: object = None) -> Iterator[None]:
    """Turn the machine's errors in the block into ``EnvironmentFailure``.

    Args:
        place: as of ``environment_failure``.

    Raises:
        EnvironmentFailure: in place of an error of the machine; others pass.
    """
    try:
        yield
    except Exception as error:
        failure = environment_failure(error, place)
        if failure is None or failure is error:
            raise
        raise failure from error


def _is_without_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:  # the second is torch's, of a GPU
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY in str(error)


def _text(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, bytes) else str(path)
