"""Errors that end a command with a message of our own, and what messages are made of.

No message holds a password.
"""

import difflib
import errno
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*:/{1,2}"  # one slash, as pathlib makes of two
# A name and a password end at an "@"; a secret of AWS may hold slashes, a port is none.
_USER = re.compile(rf"({_SCHEME})(?:[^/\s]*@|[^/\s:@]*:(?!\d*/)\S*@)")
_SECRET = r"secret|password|passwd|token|signature|credential|access_?key|api_?key"
_QUERY = re.compile(rf"([?&][^=&\s]*(?:{_SECRET})[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """The text with ``...`` for names, passwords and keys in its URLs, whatever their scheme."""
    return _QUERY.sub(r"\1...", _USER.sub(r"\1...@", text))


class _Told(Exception):
    """Its message is printed and written; it may hold what a user has typed."""

    def __init__(self, message: object) -> None:
        super().__init__(without_passwords(str(message)))


class UserError(_Told):
    """A mistake in the configuration, the data or a path.

    The message names the key or column, the value found and what is allowed. The command line
    prints it without a traceback and exits with code 2.
    """


class StoreUnreachable(UserError):
    """An object store does not answer, or refuses to; nothing is known about what it holds."""


class SplitRefused(UserError):
    """A split cannot be evaluated: its files are gone or damaged. All ranks raise it."""


class WorkKept(UserError):
    """The machine did not suffice; what is finished of a long work stays to be gone on with."""


class EnvironmentFailure(_Told):
    """The machine fails or does not suffice: a full disk, missing permissions, no memory.

    The command line prints the message, one line, and exits with code 1. ``environment_failure``
    makes it of what Python and its libraries raise.
    """


class CheckpointError(_Told):
    """A checkpoint could not be written or read; the message holds every rank's reason."""


class WorkerError(_Told):
    """A rank failed; the message is that rank's own, with its traceback."""


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


class _Shown(reprlib.Repr):
    def repr_str(self, x: str, level: int) -> str:
        # Before it is cut: without its end a password is not told from other text.
        return super().repr_str(without_passwords(x), level)


_shown = _Shown()
_shown.maxstring = _shown.maxother = _shown.maxlong = 120
_shown.maxlist = _shown.maxtuple = _shown.maxdict = _shown.maxset = 8
_shown.maxlevel = 4


def shown(value: object) -> str:
    """``repr``, cut where it is long: a message stays a message."""
    try:
        return _shown.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of more than 4,300 digits"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``; did you mean 'stem_net'?`` for ``stemnet``, or nothing."""
    if not isinstance(name, str):
        return ""
    by_plain = {_plain(candidate): candidate for candidate in known}
    near = difflib.get_close_matches(_plain(name[:100]), list(by_plain), n=1, cutoff=0.7)
    return f"; did you mean {by_plain[near[0]]!r}?" if near else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")
