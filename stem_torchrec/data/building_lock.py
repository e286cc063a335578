"""Tell a folder that is being built from one that a killed process has left."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = ".lock"


@contextmanager
def locked(building: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when the process ends in any way."""
    lock = building / _LOCK
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def remove_abandoned(out: Path) -> None:
    """Remove the building folders of ``out`` whose process is dead.

    A folder without a lock is passed over: it is that of a process between making it and locking
    it, or another's.
    """
    for building in out.parent.iterdir():
        if not building.name.startswith(f".{out.name}.building-"):
            continue
        try:
            with (building / _LOCK).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(building, ignore_errors=True)
        except OSError:
            continue
