"""One job at a time writes a folder: a lock that names its holder and goes with its process.

On a disk it is the system's lock (``flock``) of ``FOLDER/.lock``: it ends with the process, however
that ends. Between nodes it holds as far as the file system carries it (NFS does, Lustre if mounted
with ``flock``). Stores, and file systems without locks, have a lease in its place (``lease``).
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stem_torchrec.errors import UserError
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.lock.lease import Refusal, leased
from stem_torchrec.storage.place import Place
from stem_torchrec.storage.store_path import StorePath

LOCK = ".lock"

SAME_JOB_S = 60.0
"""How long a life of a job waits for an earlier one, on a lost node say, to end."""

_PASSING_S = 0.5  # who only looks whether it is held, holds it for an instant
_POLL_S = 0.05
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}


class Locked(UserError):
    """Another job is at work in the folder."""

    def __init__(self, name: str, folder: Place, holder: Holder | None) -> None:
        who = "another process" if holder is None else str(holder)
        super().__init__(
            f"{name}: {str(folder)!r} is being written by {who}; wait until it has ended, or "
            "choose another folder"
        )


@contextmanager
def locked(
    name: str, folder: Place, holder: Holder, *, mode: int = 0o777, shown: Place | None = None
) -> Iterator[None]:
    """Hold the folder's lock; the folder is made.

    ``folder/.lock`` is gone after the block, and after an error the folder, too, if it was made here
    and holds nothing. After an error both stay if the holder's launcher may start another life, for
    which it keeps the folder as long as that launcher lives.

    Args:
        name: key or option that names the folder, for messages.
        mode: of the folder, where it is made here.
        shown: what messages name in the folder's place.

    Raises:
        Locked: another job holds it; nothing is changed.
        UserError: the folder cannot be made or written, or the store does not answer.
    """

    def refusal(other: Holder | None) -> Locked:
        return Locked(name, shown or folder, other)

    file, is_made_here = None, False
    if isinstance(folder, Path):
        with usable(name, shown or folder):
            is_made_here = not folder.exists()
            file = _take(folder, holder, mode, refusal)
    if file is None or isinstance(folder, StorePath):
        with leased(folder / LOCK, holder, refusal):
            yield
        return
    with file:
        try:
            yield
        except BaseException:
            if holder.launcher is None:
                _remove(folder)
                if is_made_here:
                    with suppress(OSError):  # unless something has been written
                        folder.rmdir()
            raise
        _remove(folder)


def refuse_locked(name: str, folder: Place, holder: Holder) -> None:
    """Raise ``Locked`` if another job that is known to live holds the folder; change nothing.

    A lease of another host may be a dead one's: that is told where it is taken.
    """
    found = holder_of(folder)
    if found is None or found.same_job(holder):
        return
    if isinstance(folder, StorePath):
        held = found.state() == "lives"
    else:
        held = found.may_come_again() or _is_held(folder)
    if held:
        raise Locked(name, folder, found)


def _take(folder: Path, holder: Holder, mode: int, refusal: Refusal) -> IO[bytes] | None:
    """The folder's lock file, locked, with the holder in it; None where there are no locks."""
    start = time.monotonic()
    while True:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        try:
            file = _locked(folder / LOCK)
        except FileNotFoundError:  # its holder has ended meanwhile, and removed it
            continue
        except BlockingIOError:
            found = holder_of(folder)
            same = found is not None and found.same_job(holder)
            if time.monotonic() - start > (SAME_JOB_S if same else _PASSING_S):
                raise refusal(found) from None
            time.sleep(_POLL_S)
            continue
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            raise
        found = holder_of(folder)
        if found is not None and not found.same_job(holder) and found.may_come_again():
            file.close()
            raise refusal(found)
        try:
            file.truncate(0)
            left = holder.text().encode()
            while left:  # without a buffer, which would try again at the close
                left = left[os.write(file.fileno(), left) :]
        except OSError as error:
            _remove(folder)
            file.close()
            raise OSError(error.errno, error.strerror, str(folder)) from None
        return file


def _locked(path: Path) -> IO[bytes]:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError
    except OSError:
        file.close()
        raise
    return file


def _is_held(folder: Path) -> bool:
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def holder_of(folder: Place) -> Holder | None:
    """Who has taken the folder's lock last, as far as it says so."""
    with suppress(OSError, UserError):
        return Holder.read((folder / LOCK).read_text(errors="replace"))
    return None


def _remove(folder: Path) -> None:
    # On a full or vanished disk it stays behind, unlocked, and says nothing of a living process.
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)
