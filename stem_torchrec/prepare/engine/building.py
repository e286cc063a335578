"""The folder beside ``out`` in which it is prepared: by one process, and all of it or nothing.

.NAME.building/.lock       held by the process that is at work
.NAME.building/request     what is being prepared, once some of it is worth keeping
.NAME.building/work/       the working database
.NAME.building/prepared/   becomes ``out``
.NAME.building/replaced/   what was ``out``, until its successor is in place
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stem_torchrec.errors import EnvironmentFailure, UserError, WorkKept
from stem_torchrec.prepare.engine.occupied import refuse_occupied
from stem_torchrec.prepare.engine.stages import Watcher
from stem_torchrec.storage.folder_choice import refuse_unsafe, usable
from stem_torchrec.storage.lock.folder_lock import LOCK, locked
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.place import sync_folder
from stem_torchrec.storage.publishing import exchanged

_REQUEST, _WORK, _PREPARED, _REPLACED = "request", "work", "prepared", "replaced"

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
    with usable("output folder", out):
        out, folder = out.expanduser().resolve(), building_folder(out)
        refuse_unsafe("output folder", out)
        refuse_occupied(out, overwrite=overwrite)
    with locked("output folder", folder, Holder.this(), mode=0o700, shown=out):
        try:
            _put_back(folder / _REPLACED, out)
            refuse_occupied(out, overwrite=overwrite)  # another process may have finished it
            with usable("output folder", out):
                made = _open(folder, request or {}, fresh=fresh)
            yield made
            _replace(out, made.prepared, folder / _REPLACED)
        except BaseException as error:
            _put_back(folder / _REPLACED, out)
            kept = isinstance(error, WorkKept)
            useless = isinstance(error, UserError | EnvironmentFailure) and not kept
            if useless or not (folder / _REQUEST).exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def put_back(out: Path) -> None:
    """Undo the replacement of a folder that a kill has cut off before its successor was there.

    Raises:
        UserError: a living process is building it.
    """
    out, folder = out.expanduser().resolve(), building_folder(out)
    if (folder / _REPLACED).exists() and not out.exists():
        with locked("output folder", folder, Holder.this(), mode=0o700, shown=out):
            _put_back(folder / _REPLACED, out)


def _replace(out: Path, successor: Path, replaced: Path) -> None:
    """Let ``successor`` take the place of ``out``, which is ``replaced`` then; at once where the
    system can exchange two folders."""
    _bring_to_disk(successor)
    if not out.exists():
        successor.rename(out)
        return
    successor = successor.rename(replaced)
    if not exchanged(successor, out):
        successor = successor.rename(successor.with_name(_PREPARED))
        out.rename(replaced)
        successor.rename(out)
    sync_folder(out.parent)


def _bring_to_disk(prepared: Path) -> None:
    """Have names and metadata outlast the machine before what they replace goes; the Parquet files
    are on the disk since they were written."""
    for file in prepared.iterdir():
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    for folder in (prepared, *(path for path in prepared.rglob("*") if path.is_dir())):
        sync_folder(folder)


def _open(folder: Path, request: Request, *, fresh: bool) -> Building:
    request, before = json.loads(json.dumps(request)), _read_request(folder)
    if before == request and not fresh and (folder / _PREPARED).is_dir():
        return Building(folder, request)
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
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
