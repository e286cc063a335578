"""Folders that appear whole, or not at all.

On a disk a folder is written aside and renamed. In a store, where nothing can be renamed, it is
written in its place: as long as it has no marker file, which is written last, it is not there.
"""

import ctypes
import os
from pathlib import Path

from stem_torchrec.storage.place import Place, in_store, remove, sync_folder

PARTIAL = ".partial"
REPLACED = ".replaced"

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""


def aside_of(final: Place) -> Place:
    """Where a folder is written before it is published."""
    return final if in_store(final) else final.with_name(final.name + PARTIAL)


def publish(aside: Place, final: Place) -> None:
    """Let what was written aside, its marker included, take the place of ``final``."""
    if in_store(aside) or in_store(final):
        return
    if final.exists():
        old = final.with_name(final.name + REPLACED)
        remove(old)
        final.rename(old)
    aside.rename(final)
    sync_folder(final.parent)


def is_leftover(path: Place, marker: str) -> bool:
    """Whether a folder is what a writing or a removal that was cut off has left.

    Raises:
        UserError: the store does not say what is in it.
    """
    if in_store(path):
        return path.is_dir() and not (path / marker).is_file()
    return path.name.endswith((PARTIAL, REPLACED))


def discard(path: Place, marker: str) -> None:
    """Remove a folder or a leftover, if it is there; what is cut off leaves a leftover.

    Raises:
        OSError, UserError: it cannot be removed, here or in a store.
    """
    if in_store(path):
        remove(path / marker)
    elif not is_leftover(path, marker):
        path = path.rename(path.with_name(path.name + PARTIAL))
    remove(path)


def exchanged(first: Path, second: Path) -> bool:
    """Let two folders of one disk take each other's names, at once; false where that is not
    possible, and then nothing has changed."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
