"""Raw files and their description -> prepared folder, out of core: all adapters of one table."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from stem_torchrec.prepare.engine.building import Building, building, put_back
from stem_torchrec.prepare.engine.options import PrepareOptions
from stem_torchrec.prepare.engine.prepared import (
    folders_of_splits,
    write_metadata,
)
from stem_torchrec.prepare.engine.stages import Unseen, Watcher
from stem_torchrec.prepare.engine.working_database import working_database
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.disk_need import needed_bytes
from stem_torchrec.prepare.tables.earlier_days import open_earlier_days
from stem_torchrec.prepare.tables.encoding import (
    require_schema,
)
from stem_torchrec.prepare.tables.preparation import Preparation
from stem_torchrec.prepare.tables.rows_to_prepare import RowsToPrepare
from stem_torchrec.storage.place import Place


def prepare_files(
    sources: Sequence[str | Path],
    description: Description,
    out: Path,
    *,
    options: PrepareOptions | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    watcher: Watcher | None = None,
    day: date | None = None,
) -> dict[str, Any]:
    """Prepare raw files as described.

    Vocabularies are counted in train only. The rows of train are shuffled over all files, or
    ordered by time (``Description.shuffle``), others keep the order of the files. The same
    sources, description and seeds give the same rows in the same order on any number of threads.
    After an interruption the same call goes on with the stages that were done (see ``building``).

    Args:
        sources: files or patterns, read in this order.
        fresh: start anew even so.
        watcher: who is told what goes on.
        day: of all rows, for a split by day that names no column.

    Returns:
        The statistics (see ``compute_stats``), with ``raw_rows``, ``skipped`` (bad rows by reason)
        and ``hash`` (values, ids and collisions of each hashed table); of a split by time with
        ``cuts`` (its bounds) and ``unseen`` (see ``count_unseen``), of one by day without ``hash``
        and with ``dates`` (first and last day of each split).

    Raises:
        UserError: files, columns, values or expressions are wrong, or ``out`` is occupied.
        EnvironmentFailure: the disk is full.
    """
    require_schema(description)
    rows = RowsToPrepare(sources, description, options or PrepareOptions(), day)
    with building(out, overwrite=overwrite, request=rows.request, fresh=fresh) as made:
        return _prepare(rows, made, watcher or Unseen())


def extend_files(
    sources: Sequence[str | Path],
    folder: Place,
    description: Description | None = None,
    *,
    options: PrepareOptions | None = None,
    fresh: bool = False,
    watcher: Watcher | None = None,
    day: date | None = None,
    frozen: bool = False,
) -> dict[str, Any]:
    """Add later days to a folder that was prepared with a split by day.

    Known values keep their ids; those that reach the minimum count, counted over all days so far,
    get the next ones. The days before are taken over as they are. The folder is replaced at once
    when all is written; until then it is as it was.

    Args:
        description: as it was for the first day, but for the days of valid and test; that one if
            None.
        frozen: no value gets an id, but all are counted.

    Returns:
        The statistics of the folder, as ``prepare_files``.

    Raises:
        UserError: as ``prepare_files`` and ``open_earlier_days``, or a day is there already or
            lies before one that is.
    """
    if isinstance(folder, Path):
        put_back(folder)
    earlier = open_earlier_days(folder, description)
    description = earlier.so_far.description
    rows = RowsToPrepare(sources, description, options or PrepareOptions(), day, earlier, frozen)
    with building(earlier.folder, overwrite=True, request=rows.request, fresh=fresh) as made:
        earlier.require_unchanged()
        return _prepare(rows, made, watcher or Unseen())


def _prepare(rows: RowsToPrepare, made: Building, watcher: Watcher) -> dict[str, Any]:
    """Fill the building folder; the statistics of what is in it then."""
    counted = rows.earlier.files if rows.earlier else []
    with folders_of_splits(made.prepared):
        with working_database(made.work, rows.options) as database:
            database.lock([*rows.files, *counted], [made.prepared])
            raw = rows.open(database.connection)
            columns = rows.columns(database.connection, raw)
            needed = needed_bytes(database.connection, raw, columns.values())
            database.expect_bytes(needed, watcher)
            work = Preparation(database, rows, raw, columns, made.prepared)
            made.note_to(watcher)
            database.log.run(work.stages(), watcher, made.keep)
        # After it, for counting takes memory of its own.
        with watcher.stage("count labels", lambda: -1):
            return write_metadata(
                made.prepared, work.schema, user_column=None, item_column=None, extra=work.counts
            )
