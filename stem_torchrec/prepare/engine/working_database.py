"""The DuckDB file in which an adapter works, with bounded memory, and what its errors mean."""

import glob
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from stem_torchrec.errors import WorkKept
from stem_torchrec.prepare.engine.disk_full import disk_full, free_bytes, is_disk_full
from stem_torchrec.prepare.engine.options import Resources
from stem_torchrec.prepare.engine.query_interruption import interrupted_by_signals
from stem_torchrec.prepare.engine.row_hash import HASH_MACROS
from stem_torchrec.prepare.engine.sql import literal
from stem_torchrec.prepare.engine.stages import StageLog, Watcher

_GIB = 2**30


@dataclass
class WorkingDatabase:
    """An open working database.

    Attributes:
        building: the folder whose size counts.
        log: its finished stages.
        needed_bytes: estimate of the disk space, for the message where it does not suffice.
    """

    building: Path
    connection: duckdb.DuckDBPyConnection
    log: StageLog
    needed_bytes: int | None = None

    def lock(self, files: Iterable[Path], folders: Iterable[Path]) -> None:
        """From now on SQL reaches these files and what lies in these folders, no other file and no
        network, and cannot undo that."""
        # DuckDB asks for a path as it is written in SQL first, then for what it stands for.
        paths = [text for file in files for text in (str(file), glob.escape(str(file)))]
        inside = [str(folder) for folder in folders]
        self.connection.execute(f"SET allowed_paths = [{', '.join(map(literal, paths))}]")
        self.connection.execute(f"SET allowed_directories = [{', '.join(map(literal, inside))}]")
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def expect_bytes(self, needed: int, watcher: Watcher) -> None:
        """State the disk space that is needed, and say so if there may be too little."""
        self.needed_bytes = needed
        free = free_bytes(self.building)
        if free < needed:
            watcher.note(
                f"the disk of {str(self.building.parent)!r} may be too small: up to "
                f"{needed / _GIB:.2f} GiB are needed for a while, {free / _GIB:.2f} GiB are free"
            )


@contextmanager
def working_database(folder: Path, resources: Resources) -> Iterator[WorkingDatabase]:
    """The database in ``folder``, as an interruption has left it or a new one.

    Raises:
        EnvironmentFailure: the disk is full.
        WorkKept: the memory is too small.
        KeyboardInterrupt: a signal has ended a query.
    """
    database: WorkingDatabase | None = None
    try:
        with _connected(folder, resources) as connection, interrupted_by_signals(connection):
            # Without these two a connection counts no progress for others to ask for.
            connection.execute("SET enable_progress_bar = true")
            connection.execute("SET enable_progress_bar_print = false")
            # Days and hours are those of UTC, wherever the work is done.
            connection.execute("SET TimeZone = 'UTC'")
            for macro in HASH_MACROS:
                connection.execute(macro)
            database = WorkingDatabase(folder.parent, connection, StageLog(connection))
            yield database
    except (duckdb.Error, OSError, RuntimeError) as error:
        needed_bytes = database.needed_bytes if database else None
        raise _readable(error, folder.parent, resources, needed_bytes) from error


def _connected(folder: Path, resources: Resources) -> duckdb.DuckDBPyConnection:
    file, overflow = folder / "work.duckdb", folder / "overflow"
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{resources.limit_bytes}B",
        "threads": resources.num_threads,
        "temp_directory": str(overflow),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    shutil.rmtree(overflow, ignore_errors=True)  # a killed process's
    try:
        return duckdb.connect(str(file), config=config)
    except duckdb.Error:
        if not file.exists():
            raise
        for damaged in folder.iterdir():  # as by a loss of power: work starts anew
            damaged.unlink()
        return duckdb.connect(str(file), config=config)


def _readable(
    error: Exception, folder: Path, resources: Resources, needed_bytes: int | None
) -> BaseException:
    # What comes by way of Arrow is an OSError with DuckDB's text.
    if re.search("Query interrupted|INTERRUPT Error", str(error)):
        return KeyboardInterrupt()
    if is_disk_full(error):
        return disk_full(folder, needed_bytes)
    if isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error):
        limit_gib = resources.limit_bytes / _GIB
        return WorkKept(
            f"memory_gib: not enough; DuckDB had {limit_gib:.1f} GiB of it. Give more, or fewer "
            "threads; finished stages are kept"
        )
    return error
