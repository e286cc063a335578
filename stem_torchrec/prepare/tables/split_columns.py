"""The column of ``rows`` that says to which split a row belongs: its time, day, or the split."""

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import duckdb

from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import (
    INTEGER_TYPES,
    without_zero_fraction_sql,
)
from stem_torchrec.prepare.engine.sql import literal
from stem_torchrec.prepare.tables.column import Column, fault_sql
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.expressions import TIME_TYPES, bind_value
from stem_torchrec.prepare.tables.raw.files import FILE_COLUMN, RawFiles
from stem_torchrec.prepare.tables.splits import ColumnSplit, DaySplit, FileSplit, TimeSplit
from stem_torchrec.prepare.tables.value_forms import Values

TIME_COLUMN, PART_COLUMN, DAY_COLUMN = "_time", "_part", "_day"


def split_columns(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    description: Description,
    day: date | None = None,
) -> Iterator[Column]:
    """``_time`` (BIGINT), ``_day`` (DATE) or ``_part`` (TINYINT), as the split needs it.

    Args:
        day: of all rows, where the rows do not say it.

    Raises:
        UserError: what the split is made by is not there, or is of no type for it.
    """
    split = description.split
    if day is not None and split.by != "day":
        raise UserError(f"--day: only a split by day has days; split is by {split.by!r}")
    if isinstance(split, TimeSplit):
        yield _time(connection, raw, split)
    elif isinstance(split, ColumnSplit):
        yield _part(connection, raw, split)
    elif isinstance(split, FileSplit):
        yield _part_of_file(raw, split)
    elif isinstance(split, DaySplit):
        yield _day(connection, raw, split, day)


def time_sql(sql: str, type_name: str) -> str:
    """A time as a BIGINT: integers as they are, dates and timestamps as microseconds of UTC, those
    that hold nanoseconds as such."""
    if type_name == "TIMESTAMP_NS":
        return f"epoch_ns({sql})"
    return f"epoch_us(({sql})::TIMESTAMP)" if type_name in TIME_TYPES else f"({sql})::BIGINT"


def _time(connection: duckdb.DuckDBPyConnection, raw: RawFiles, split: TimeSplit) -> Column:
    value = bind_value(connection, raw, "split", split.column, split.expression, as_written=False)
    if value.type not in (*INTEGER_TYPES, *TIME_TYPES):
        raise UserError(
            f"{value.key}: type {value.type}; a time is an integer, a date or a timestamp"
        )
    sql = time_sql(value.sql, value.type)
    return Column(
        name=TIME_COLUMN,
        sql=sql,
        wrong=f"({sql}) IS NULL",
        fault=fault_sql("time of the split", value.sql, "a time"),
        typed=value.typed,
        type=value.type,
    )


def _part(connection: duckdb.DuckDBPyConnection, raw: RawFiles, split: ColumnSplit) -> Column:
    value = bind_value(connection, raw, "split", split.column, split.expression)
    text = f"({Values.of(value).forms[-1].value(value.sql)})::VARCHAR"
    text = without_zero_fraction_sql(text)
    cases = [
        f"WHEN {text} IN ({', '.join(map(literal, texts))}) THEN {number}"
        for number, name in enumerate(SPLITS)
        if (texts := split.texts(name))
    ]
    sql = f"CASE {' '.join(cases)} END::TINYINT"
    return Column(
        name=PART_COLUMN,
        sql=sql,
        wrong=f"({sql}) IS NULL",
        fault=fault_sql("value of the split", value.sql, "listed under train, valid or test"),
        typed=value.typed,
    )


def _part_of_file(raw: RawFiles, split: FileSplit) -> Column:
    files: dict[str, list[Path]] = {name: [] for name in SPLITS}
    for path, name in _splits_of_files(raw.paths, split).items():
        files[name].append(path)
    cases = [
        f"WHEN {FILE_COLUMN} IN ({', '.join(literal(str(path)) for path in paths)}) THEN {number}"
        for number, paths in enumerate(files.values())
        if paths
    ]
    return Column(name=PART_COLUMN, sql=f"CASE {' '.join(cases)} END::TINYINT", typed=frozenset())


def _splits_of_files(paths: Sequence[Path], split: FileSplit) -> dict[Path, str]:
    """The split of each file.

    Raises:
        UserError: a pattern matches no file, or a file is of two splits or of none.
    """
    found: dict[Path, str] = {}
    for name in SPLITS:
        for pattern in getattr(split, name):
            matched = [path for path in paths if path.match(pattern)]
            if not matched:
                shown = ", ".join(str(path) for path in paths[:3])
                raise UserError(f"split.{name}: {pattern!r} matches no file of --source: {shown}")
            for path in matched:
                if (other := found.setdefault(path, name)) != name:
                    raise UserError(
                        f"split.{name}: {pattern!r} matches {path}, which is of {other}"
                    )
    if missing := [path for path in paths if path not in found]:
        raise UserError(f"split: {missing[0]} matches no pattern of train, valid or test")
    return found


def _day(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, split: DaySplit, day: date | None
) -> Column:
    if split.has_source == (day is not None):
        need = "the rows say it, split names the column" if day else "needed: split names no column"
        raise UserError(f"--day: {need}")
    if day is not None:
        return Column(name=DAY_COLUMN, sql=f"DATE {literal(str(day))}", typed=frozenset())
    value = bind_value(connection, raw, "split", split.column, split.expression, as_written=False)
    sql = _day_sql(value.sql, value.type)
    if sql is None:
        raise UserError(
            f"{value.key}: type {value.type}; a day is a date, a timestamp, 20220408 or a text"
        )
    return Column(
        name=DAY_COLUMN,
        sql=sql,
        wrong=f"({sql}) IS NULL",
        fault=fault_sql("day of the split", value.sql, "a day, such as 2022-04-08 or 20220408"),
        typed=value.typed,
        type=value.type,
    )


def _day_sql(sql: str, type_name: str) -> str | None:
    """A day as a DATE, null if the value is none; None if no value of this type is one."""
    if type_name in TIME_TYPES:
        return f"(({sql})::TIMESTAMP)::DATE"
    if type_name not in (*INTEGER_TYPES, "VARCHAR"):
        return None
    text = f"({sql})::VARCHAR"
    is_day = f"regexp_full_match({text}, '[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}|[0-9]{{8}}')"
    return f"CASE WHEN {is_day} THEN try_strptime({text}, ['%Y-%m-%d', '%Y%m%d'])::DATE END"
