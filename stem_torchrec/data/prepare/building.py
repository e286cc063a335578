"""The folder beside ``out`` in which it is prepared: by one process, and all of it or nothing.

.NAME.building/.lock       held by the process that is at work
.NAME.building/request     what is being prepared, once some of it is worth keeping
.NAME.building/work/       the working database
.NAME.building/prepared/   becomes ``out``
.NAME.building/replaced/   what was ``out``, until its successor is in place
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from stem_torchrec.data.prepare.occupied import refuse_occupied
from stem_torchrec.data.prepare.stages import Watcher
from stem_torchrec.errors import EnvironmentFailure, UserError, WorkKept

_LOCK, _REQUEST, _WORK, _PREPARED, _REPLACED = ".lock", "request", "work", "prepared", "replaced"

Request = dict[str, Any]


@dataclass(frozen=True)
class Building:
    """An open building folder.

    Attributes:
        request: all that decides what is prepared, as JSON has it.
        changed: keys in which the request differs from that of unfinished work, which is gone.
    """

    folder: Path
    request: Request
    changed: tuple[str, ...] = ()

    @property
    def prepared(self) -> Path:
        return self.folder / _PREPARED

    @property
    def work(self) -> Path:
        return self.folder / _WORK

    def keep(self) -> None:
        """From now on an interruption leaves the folder, and the same request goes on with it."""
        (self.folder / _REQUEST).write_text(json.dumps(self.request))

    def note_to(self, watcher: Watcher) -> None:
        """Say why work that was there is not gone on with."""
        if self.changed:
            watcher.note(f"starts anew: {', '.join(self.changed)} changed since the interruption")


def building_folder(out: Path) -> Path:
    out = out.expanduser().resolve()
    return out.with_name(f".{out.name}.building")


@contextmanager
def building(
    out: Path, *, overwrite: bool = False, request: Request | None = None, fresh: bool = False
) -> Iterator[Building]:
    """A folder to build in, whose ``prepared`` is renamed to ``out`` when the block has ended well.

    It lies beside ``out``, so the rename is atomic. After a UserError or a full disk it is removed,
    after anything else unless ``Building.keep`` was called; ``out`` is as it was. What was kept of
    the same ``request`` is found in it again, other remains are removed.

    Args:
        fresh: go on with nothing.

    Raises:
        UserError: ``out`` is a file, or holds files and ``overwrite`` is false, or holds files
            that no adapter wrote, or its parent cannot be written, or a living process is building
            it.
    """
    out, folder = out.expanduser().resolve(), building_folder(out)
    refuse_occupied(out, overwrite=overwrite)
    with _writing(out):
        lock = _lock(folder)
    with lock:
        try:
            _put_back(folder / _REPLACED, out)
            refuse_occupied(out, overwrite=overwrite)  # another process may have finished it
            with _writing(out):
                made = _open(folder, request or {}, fresh=fresh)
            yield made
            if out.exists():  # it goes only when its successor is there
                out.rename(folder / _REPLACED)
            made.prepared.rename(out)
        except BaseException as error:
            _put_back(folder / _REPLACED, out)
            kept = isinstance(error, WorkKept)
            useless = isinstance(error, UserError | EnvironmentFailure) and not kept
            if useless or not (folder / _REQUEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise UserError(
            f"output folder {str(out)!r} is being prepared by another process"
        ) from None
    except OSError as error:
        raise UserError(f"output folder {str(out)!r} cannot be written: {error.strerror}") from None


def _lock(folder: Path) -> IO[str]:
    """The folder's lock, which the system lets go when the process ends in any way."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Who has held it may have finished meanwhile, and removed the folder with it.
        with suppress(FileNotFoundError):
            return _locked(folder / _LOCK)


def _locked(path: Path) -> IO[str]:
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError
    except OSError:
        file.close()
        raise
    return file


def _open(folder: Path, request: Request, *, fresh: bool) -> Building:
    request, before = json.loads(json.dumps(request)), _read_request(folder)
    if before == request and not fresh and (folder / _PREPARED).is_dir():
        return Building(folder, request)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()
    changed = () if before is None or fresh else tuple(_changed(before, request))
    made = Building(folder, request, changed)
    made.prepared.mkdir()
    made.work.mkdir()
    return made


def _read_request(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _REQUEST).read_text())
    except (FileNotFoundError, ValueError):  # a loss of power may leave it empty
        return None


def _changed(before: Request, request: Request) -> list[str]:
    return [key for key in request | before if request.get(key) != before.get(key)]


def _put_back(replaced: Path, out: Path) -> None:
    if replaced.exists() and not out.exists():
        replaced.rename(out)
