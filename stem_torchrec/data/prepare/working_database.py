"""The DuckDB file in which an adapter works, with bounded memory, and what its errors mean."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from pydantic import BaseModel, ConfigDict, Field

from stem_torchrec.data.prepare.query_interruption import interrupted_by_signals
from stem_torchrec.data.prepare.row_hash import HASH_MACROS
from stem_torchrec.data.prepare.stages import StageLog, Watcher
from stem_torchrec.errors import UserError, WorkKept

_GIB = 2**30
# What DuckDB takes beside its own account of memory: the interpreter, threads, allocator.
_UNACCOUNTED_GIB = 0.4


class Resources(BaseModel):
    """What preparing may take of the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_gib: float | None = Field(
        None, gt=0.5, description="memory of the process, GiB; null: half of the machine's"
    )
    threads: int | None = Field(None, ge=1, description="threads; null: one per core")

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def limit_bytes(self) -> int:
        """What DuckDB may count as its own."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        memory_gib = total / 2 if self.memory_gib is None else self.memory_gib
        return int(max(memory_gib - _UNACCOUNTED_GIB, memory_gib / 4) * _GIB)


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

    def expect_bytes(self, needed: int, watcher: Watcher) -> None:
        """State the disk space that is needed, and say so if there may be too little."""
        self.needed_bytes = needed
        free = shutil.disk_usage(self.building).free + _written_bytes(self.building)
        if free < needed:
            watcher.note(
                f"the disk of {str(self.building.parent)!r} may be too small: up to "
                f"{needed / _GIB:.2f} GiB are needed for a while, {free / _GIB:.2f} GiB are free"
            )


@contextmanager
def working_database(folder: Path, resources: Resources) -> Iterator[WorkingDatabase]:
    """The database in ``folder``, as an interruption has left it or a new one.

    Raises:
        UserError: the disk is full or the memory too small.
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


def quoted(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def fetch_one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    """The first row of a query that has one."""
    found = connection.execute(query).fetchone()
    assert found is not None
    return found


def _readable(
    error: Exception, folder: Path, resources: Resources, needed_bytes: int | None
) -> BaseException:
    if isinstance(error, duckdb.InterruptException) or "Query interrupted" in str(error):
        return KeyboardInterrupt()
    if re.search(r"No space left|File too large|max_temp_directory_size|quota", str(error), re.I):
        return UserError(_disk_full(folder, needed_bytes))
    if isinstance(error, duckdb.OutOfMemoryException):
        limit_gib = resources.limit_bytes / _GIB
        return WorkKept(
            f"memory_gib: not enough; DuckDB had {limit_gib:.1f} GiB of it. Give more, or fewer "
            "threads; finished stages are kept"
        )
    return error


def _disk_full(folder: Path, needed_bytes: int | None) -> str:
    free = shutil.disk_usage(folder).free + _written_bytes(folder)
    needed = "" if needed_bytes is None else f"up to {needed_bytes / _GIB:.2f} GiB are needed, "
    return (
        f"the disk of {str(folder.parent)!r} is full: {needed}{free / _GIB:.2f} GiB are free now "
        "that what was written is removed again"
    )


def _written_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
