"""Find the files of a KuaiRand release, check their columns and read them into DuckDB."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import is_integer_sql
from stem_torchrec.prepare.kuairand.features import LOG_COLUMNS, TASKS, RawFeature
from stem_torchrec.prepare.tables.describe import RawFormat
from stem_torchrec.prepare.tables.raw import headers as raw_headers
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.files import RawFiles

_FORMAT = RawFormat()
_PART = re.compile(r"_part\d+$")


@dataclass(frozen=True)
class Release:
    """CSV files of one release: several parts of each are read as one.

    Attributes:
        version: 1k, 27k, pure, or how the names of other files end.
    """

    version: str
    logs: tuple[Path, ...]
    users: tuple[Path, ...]
    videos: tuple[Path, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.logs, *self.users, *self.videos)


def patterns(*, include_random: bool) -> list[str]:
    """Names of the files that are read: logs, then users, then videos."""
    random = ["log_random_*.csv"] * include_random
    return ["log_standard_*.csv", *random, "user_features*.csv", "video_features_basic*.csv"]


def find_release(source: Path, *, include_random: bool) -> Release:
    """Look for the files in ``source`` and in its ``data`` folder, as the release has them.

    Raises:
        UserError: the folder or a kind of file is missing, or files of several releases (1k, 27k,
            pure) lie together.
    """
    if not source.is_dir():
        raise UserError(f"KuaiRand folder {str(source)!r} does not exist")
    folders = [source, source / "data"]
    *log_patterns, user_pattern, video_pattern = patterns(include_random=include_random)
    logs = [path for pattern in log_patterns for path in _find(folders, pattern)]
    users = _find(folders, user_pattern)
    videos = _find(folders, video_pattern)
    versions = {_PART.sub("", path.stem).rpartition("_")[2] for path in (*logs, *users, *videos)}
    if len(versions) > 1:
        raise UserError(
            f"KuaiRand folder {str(source)!r} mixes the releases {', '.join(sorted(versions))}; "
            "keep one release per folder"
        )
    release = Release(versions.pop(), tuple(logs), tuple(users), tuple(videos))
    for path in release.files:
        if not path.stat().st_size:
            raise UserError(f"{path}: is empty")
    return release


def read_header(path: Path) -> list[str]:
    """Column names of a CSV file."""
    return raw_headers.read_header(path, _FORMAT)


def require_columns(path: Path, columns: Sequence[str]) -> None:
    """Raise UserError, naming file and column, if the file lacks one of the columns."""
    found = read_header(path)
    for column in columns:
        if column not in found:
            raise UserError(
                f"{path.name}: column {column!r} is missing; the file has {', '.join(found)}"
            )


def read_log(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    features: Sequence[RawFeature],
    tasks: Sequence[str],
) -> None:
    """Add a file to the table ``log``: keys, date, the log's own features (buckets, or raw values
    of a vocabulary) and one nullable 0/1 column per task.

    Raises:
        UserError: a key is no integer, a label is not 0, 1 or empty, or the CSV is malformed.
    """
    keys = ("user_id", "video_id", "date", "time_ms")
    own = [feature for feature in features if feature.source == "log" and feature.name not in keys]
    selected = [f"{_integer(key)} AS {key}" for key in keys]
    selected += [f"{feature.sql} AS {feature.name}" for feature in own]
    selected += [f"{_label(task)} AS {task}" for task in tasks]
    needed = [*LOG_COLUMNS, *(column for f in own for column in f.columns)]
    needed += [TASKS[task][0] for task in tasks]
    require_columns(path, needed)
    query = f"SELECT {', '.join(selected)} FROM {_raw(path).relation()}"
    with _readable_errors(path):
        connection.execute(f"CREATE TABLE IF NOT EXISTS log AS {query} LIMIT 0")
        connection.execute(f"INSERT INTO log {query}")


def read_side(
    connection: duckdb.DuckDBPyConnection,
    paths: Sequence[Path],
    table: str,
    key: str,
    columns: Sequence[str],
) -> None:
    """Create ``table`` with the integer ``key`` and the raw columns; equal rows count once.

    Raises:
        UserError: a key is no integer, or has two rows that differ.
    """
    selected = ", ".join([f"{_integer(key)} AS {key}", *columns])
    for number, path in enumerate(paths):
        require_columns(path, [key, *columns])
        verb = f"INSERT INTO {table}_rows" if number else f"CREATE TABLE {table}_rows AS"
        with _readable_errors(path):
            connection.execute(f"{verb} SELECT {selected} FROM {_raw(path).relation()}")
    connection.execute(f"CREATE TABLE {table} AS SELECT DISTINCT * FROM {table}_rows")
    connection.execute(f"DROP TABLE {table}_rows")
    doubled = connection.execute(
        f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1 ORDER BY {key} LIMIT 1"
    ).fetchone()
    if doubled:
        raise UserError(f"{paths[0].name}: {key} {doubled[0]} has several rows that differ")


def _find(folders: Sequence[Path], pattern: str) -> list[Path]:
    for folder in folders:
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError(
        f"no file {pattern} in {str(folders[0])!r} or its data folder; expected the files of a "
        "KuaiRand release"
    )


def _raw(path: Path) -> RawFiles:
    return RawFiles((path,), _FORMAT, dict.fromkeys(read_header(path), "VARCHAR"))


def _integer(column: str) -> str:
    wrong = f"error(concat('column {column}: ', coalesce({column}, 'nothing'), ' is no integer'))"
    number = f"TRY_CAST({column} AS BIGINT)"
    is_none = f"{number} IS NULL OR NOT {is_integer_sql(column)}"
    return f"CASE WHEN {is_none} THEN {wrong} ELSE {number} END"


def _label(task: str) -> str:
    column, positive = TASKS[task]
    number = f"TRY_CAST({column} AS DOUBLE)"
    if positive == "one":
        wrong = f"error(concat('column {column}: ', {column}, ' is not 0, 1 or empty'))"
        return (
            f"CASE WHEN {column} IS NULL THEN NULL WHEN {number} IN (0, 1) "
            f"THEN {number}::TINYINT ELSE {wrong} END"
        )
    wrong = f"error(concat('column {column}: ', {column}, ' is not a time, 0 or more'))"
    return (
        f"CASE WHEN {column} IS NULL THEN NULL WHEN {number} >= 0 "
        f"THEN ({number} > 0)::TINYINT ELSE {wrong} END"
    )


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        with readable_errors([path]):
            yield
    except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise UserError(f"{path.name}: {reason}") from None
