"""KuaiRand (Gao et al., CIKM 2022) as published -> prepared folder, out of core with DuckDB."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from stem_torchrec.data.schema import SPLITS, Schema, Task
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import write_encoder
from stem_torchrec.prepare.engine.building import building
from stem_torchrec.prepare.engine.options import KuaiRandConfig
from stem_torchrec.prepare.engine.prepared import (
    folders_of_splits,
    write_metadata,
)
from stem_torchrec.prepare.engine.request import request_of
from stem_torchrec.prepare.engine.stages import Stage, Unseen, Watcher
from stem_torchrec.prepare.engine.vocabulary import copy_to, write_vocabulary
from stem_torchrec.prepare.engine.working_database import WorkingDatabase, working_database
from stem_torchrec.prepare.kuairand.days import last_days, split_days
from stem_torchrec.prepare.kuairand.encode import encode, rows_of_day
from stem_torchrec.prepare.kuairand.encoder import encoder_of
from stem_torchrec.prepare.kuairand.features import TASKS, RawFeature, features_of
from stem_torchrec.prepare.kuairand.source import (
    Release,
    find_release,
    read_header,
    read_log,
    read_side,
    require_columns,
)
from stem_torchrec.prepare.tables.disk_need import needed_bytes_of_lines

GROUP_COLUMN = "group"


def prepare_kuairand(
    source: Path,
    out: Path,
    *,
    config: KuaiRandConfig | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Prepare a KuaiRand release (1K, 27K, Pure, or files in their format).

    Rows are split by day, one file per day, and ordered by time. Vocabularies are counted in the
    train split; ids are 0 for values that are rare, unseen or missing there. The column ``group``
    holds the raw user id, so users without an id of their own stay apart in GAUC. After an
    interruption the same call goes on with the stages that were done, unless it is to start
    ``fresh`` (see ``building``).

    Returns:
        The statistics (see ``compute_stats``), with ``dates``: first and last day per split.

    Raises:
        UserError: files or columns are missing or malformed, a task is unknown, a split is empty,
            or ``out`` is occupied.
    """
    config, watcher = config or KuaiRandConfig(), watcher or Unseen()
    release = find_release(source.expanduser(), include_random=config.include_random)
    log_columns = _common_columns(release.logs)
    tasks = _choose_tasks(config, release, log_columns)
    features = features_of(log_columns, fields=config.fields)
    with (
        building(
            out, overwrite=overwrite, request=request_of(release.files, config), fresh=fresh
        ) as made,
        folders_of_splits(made.prepared),
    ):
        with working_database(made.work, config) as database:
            num_columns = len(features) + len(tasks) + 1
            needed = needed_bytes_of_lines(release.logs, num_columns)
            database.expect_bytes(needed, watcher)
            work = _Work(database, release, config, features, tasks, made.prepared)
            made.note_to(watcher)
            database.log.run(work.stages(), watcher, made.keep)
        with watcher.stage("count labels", lambda: -1):
            return write_metadata(
                made.prepared,
                work.schema,
                user_column=GROUP_COLUMN,
                item_column="video_id",
                extra=work.counts,
            )


@dataclass(frozen=True)
class _Work:
    """The stages between a release and written splits."""

    database: WorkingDatabase
    release: Release
    config: KuaiRandConfig
    features: Sequence[RawFeature]
    tasks: Sequence[str]
    folder: Path

    def stages(self) -> list[Stage]:
        logs = self.release.logs
        return [
            *(Stage(f"read {path.name}", partial(self._read_log, path)) for path in logs),
            Stage("read users and videos", self._read_sides),
            Stage("split", self._split),
            Stage("ids", self._encode),
            Stage("count users and items", partial(_raw_counts, self._connection)),
            *(Stage(f"write {split}", partial(self._write, split)) for split in SPLITS),
        ]

    @property
    def schema(self) -> Schema:
        """Of the folder, once the ids are counted."""
        rows = self._results["ids"]
        return Schema(
            features=tuple(feature.encoded(rows[feature.name]) for feature in self.features),
            tasks=tuple(Task(name=task) for task in self.tasks),
            group=GROUP_COLUMN,
        )

    @property
    def counts(self) -> dict[str, Any]:
        """Users and items of the raw log, and first and last day of each split."""
        days = self._results["split"]
        dates = {split: [dates[0], dates[-1]] for split, dates in days.items()}
        return self._results["count users and items"] | {"dates": dates}

    @property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        return self.database.connection

    @property
    def _results(self) -> dict[str, Any]:
        return self.database.log.results

    def _read_log(self, path: Path) -> None:
        with _unordered(self._connection):
            read_log(self._connection, path, self.features, self.tasks)

    def _read_sides(self) -> None:
        users = [c for f in self.features if f.source == "user" for c in f.columns]
        videos = [c for f in self.features if f.source in ("video", "joined") for c in f.columns]
        with _unordered(self._connection):
            read_side(self._connection, self.release.users, "users", "user_id", users)
            read_side(self._connection, self.release.videos, "videos", "video_id", videos)

    def _split(self) -> dict[str, list[int]]:
        config = self.config
        last = last_days(config.split, self.release.version)
        return split_days(self._connection, config.train_until, config.valid_until, last)

    def _encode(self) -> dict[str, int]:
        """Count and write the vocabularies; rows of each table."""
        last_day, min_count = self._results["split"]["train"][-1], self.config.min_count
        rows = encode(self._connection, self.features, last_day, min_count)
        for feature in self.features:
            if feature.num_buckets is None:
                write_vocabulary(self._connection, feature.name, self.folder / VOCABULARY_FOLDER)
        write_encoder(encoder_of(self.features), self.folder)
        return rows

    def _write(self, split: str) -> None:
        for date in self._results["split"][split]:
            query = rows_of_day(self.features, self.tasks, GROUP_COLUMN, date)
            path = self.folder / split / f"{date}.parquet"
            copy_to(self._connection, query, path, row_group_rows=self.config.row_group_rows)


@contextmanager
def _unordered(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Halves the memory of reading."""
    connection.execute("SET preserve_insertion_order = false")
    yield
    connection.execute("SET preserve_insertion_order = true")


def _common_columns(logs: Sequence[Path]) -> list[str]:
    headers = [read_header(path) for path in logs]
    return [column for column in headers[0] if all(column in header for header in headers)]


def _choose_tasks(
    config: KuaiRandConfig, release: Release, log_columns: Sequence[str]
) -> list[str]:
    available = [task for task, (column, _) in TASKS.items() if column in log_columns]
    if config.tasks is None:
        if not available:
            outcomes = ", ".join(column for column, _ in TASKS.values())
            raise UserError(f"{release.logs[0].name}: no outcome column; known are {outcomes}")
        return available
    for task in config.tasks:
        if task not in TASKS:
            raise UserError(f"tasks: unknown {task!r}; allowed are {', '.join(TASKS)}")
        if config.tasks.count(task) > 1:
            raise UserError(f"tasks: {task!r} is named twice")
        for path in release.logs:
            require_columns(path, [TASKS[task][0]])
    if not config.tasks:
        raise UserError(f"tasks: empty; the log has {', '.join(available)}")
    return list(config.tasks)


def _raw_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Users and items of the raw log; the written ids merge the rare ones."""
    found = connection.execute(
        "SELECT count(DISTINCT user_id), count(DISTINCT video_id) FROM log"
    ).fetchone()
    assert found is not None
    return {"users": found[0], "items": found[1]}
