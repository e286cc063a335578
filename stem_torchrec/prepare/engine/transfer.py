"""Prepare from and to object stores: raw files come to a local folder, prepared ones go up last.

The engine that prepares works on local files, so a store costs disk: the raw files that are read,
besides what preparing needs anyway. They lie in the folder for temporary files (``TMPDIR``) and go
with the block, also after an error.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow.fs as fs

from stem_torchrec.data.schema import SCHEMA_FILE
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.occupied import refuse_occupied
from stem_torchrec.storage.lock.folder_lock import Locked
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.lock.lease import leased
from stem_torchrec.storage.place import Place, relative
from stem_torchrec.storage.store_path import StorePath
from stem_torchrec.storage.stores import readable_errors

_THREADS = 4
_LOCAL = fs.LocalFileSystem()


@contextmanager
def local_source(source: Place, patterns: Sequence[str] = ("*",)) -> Iterator[Path]:
    """The raw file or folder as a local one; a local place is handed on as it is.

    Args:
        patterns: of a folder, only files whose names fit one of these are fetched.

    Raises:
        UserError: the place does not exist, no file fits, the disk is too small for the files, or
            the block raised one, which then names the place and not the copy.
    """
    if isinstance(source, Path):
        yield source
        return
    with _temporary_folder() as folder:
        local = folder / (source.name or source.host)
        _fetch(source, _wanted(source, patterns), local)
        with _named(local, source):
            yield local


@contextmanager
def local_target(out: Place, *, overwrite: bool) -> Iterator[Path]:
    """A local folder to prepare into, uploaded to ``out`` after the block, its schema last.

    A local place is handed on as it is. In a store nothing can be renamed: a folder that is
    replaced is gone before its successor is there. Without ``schema.json`` it is no prepared
    folder, so a part of one is never read; after an error it is removed.

    Raises:
        UserError: the folder in the store is occupied (as ``prepared_folder`` does), it cannot be
            written, or the block raised one.
    """
    if isinstance(out, Path):
        yield out
        return
    out.require_bucket()
    refuse_occupied(out, overwrite=overwrite)
    with _claimed(out), _temporary_folder() as folder:
        refuse_occupied(out, overwrite=overwrite)  # another process may have finished it
        local = folder / (out.name or out.host)
        with _named(local, out):
            yield local
            _upload(local, out)


@contextmanager
def _claimed(out: StorePath) -> Iterator[None]:
    """Prepare into it alone. Beside the folder: the files in it are those that are prepared."""
    file = out.parent / f".{out.name or out.host}.lock"
    with leased(file, Holder.this(), lambda other: Locked("--out", out, other)):
        yield


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stem_torchrec-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _named(local: Path, place: StorePath) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(str(local), str(place))) from None


def _wanted(source: StorePath, patterns: Sequence[str]) -> list[StorePath]:
    """The files to fetch; ``[source]`` if that is a file itself."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        source.require_bucket()
        raise UserError(f"{source}: does not exist")
    files = [f for f in source.files() if any(fnmatchcase(f.name, p) for p in patterns)]
    if not files:
        raise UserError(f"{source}: no file fits {', '.join(patterns)}")
    return files


def _fetch(source: StorePath, files: Sequence[StorePath], local: Path) -> None:
    needed = sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(local.parent).free
    if needed > free:
        raise UserError(
            f"{source}: {needed / 2**30:.1f} GiB do not fit into {tempfile.gettempdir()}, which "
            f"has {free / 2**30:.1f} GiB left; set TMPDIR to a larger disk"
        )

    def fetch(file: StorePath) -> None:
        to = local / relative(file, source)
        to.parent.mkdir(parents=True, exist_ok=True)
        with readable_errors(file):
            fs.copy_files(file.key, str(to), file.filesystem, _LOCAL)
        # The same file is told by it when work is gone on with.
        os.utime(to, ns=(file.stat().st_mtime_ns,) * 2)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(fetch, files))


def _upload(local: Path, out: StorePath) -> None:
    _remove(out)
    files = [path for path in sorted(local.rglob("*")) if path.is_file()]
    files.remove(local / SCHEMA_FILE)

    def upload(file: Path) -> None:
        to = out / relative(file, local).as_posix()
        with readable_errors(to):
            fs.copy_files(str(file), to.key, _LOCAL, to.filesystem)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(upload, files))
        upload(local / SCHEMA_FILE)
    except BaseException:
        with suppress(UserError):  # the store may be the reason; what counts is the first error
            _remove(out)
        raise


def _remove(out: StorePath) -> None:
    """Remove the folder's files, the schema first: from then on it is no prepared folder."""
    if not out.is_dir():
        return
    for file in sorted(out.files(), key=lambda file: file != out / SCHEMA_FILE):
        with readable_errors(file):
            file.filesystem.delete_file(file.key)
