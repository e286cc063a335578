"""Which folders a command may write, told before anything is written there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place
from stem_torchrec.storage.store_path import StorePath

_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE),
    *(errno.ENFILE, errno.ESTALE),
}
"""Errors that another path would not mend."""


@contextmanager
def usable(name: str, place: Place) -> Iterator[None]:
    """What a path as such makes impossible in the block is the user's mistake.

    Too long a name, a file where a folder is expected, no permission, a read-only disk.

    Args:
        name: key or option that names the place.

    Raises:
        UserError: names it, with the system's reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_MACHINE or isinstance(place, StorePath):
            raise
        reason = error.strerror or str(error)
        raise UserError(f"{name}: {str(place)!r} cannot be used: {reason}") from None


def check_writable(name: str, folder: Place) -> None:
    """Raise UserError if the folder cannot be made or written; nothing is made."""
    if isinstance(folder, StorePath):
        return
    with usable(name, folder):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(there)!r} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{str(there)!r} cannot be written")


def make_folder(name: str, folder: Path) -> None:
    """Make the folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    with usable(name, folder):
        folder.mkdir(parents=True, exist_ok=True)


def refuse_unsafe(name: str, folder: Place, data: Place | None = None) -> None:
    """Refuse a folder that holds more than what a command would write and replace in it.

    Args:
        data: the folder that is read.

    Raises:
        UserError: it is, or lies above, the current folder, the home folder or the data.
    """
    kept = {"the data folder": data}
    if isinstance(folder, Path):
        kept |= {"the current folder": Path.cwd(), "the home folder": _home()}
    with usable(name, folder):
        for what, other in kept.items():
            if other is not None and _is_in(other, folder):
                raise UserError(
                    f"{name}: {str(folder)!r} is {what} or lies above it; choose a folder for "
                    "nothing else"
                )


def _is_in(place: Place, folder: Place) -> bool:
    if isinstance(place, StorePath) != isinstance(folder, StorePath):
        return False
    parts, whole = folder.resolve().parts, place.resolve().parts
    return whole[: len(parts)] == parts


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # a user without one
        return None
