"""Numbers and times as files write them: decimal commas, days first, seconds since 1970."""

from collections.abc import Collection

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.sql import literal
from stem_torchrec.prepare.tables.describe import RawFormat

TIME_TYPE = "TIMESTAMP"
"""Of the columns of ``format.times``."""

_PER_SECOND = {"unix": 1, "unix_ms": 1000}
_SECONDS = (-62_135_596_800, 253_402_300_799)  # the years 1 to 9999


def number_text(text: str, decimal: str) -> str:
    """SQL of a number's text with a point; null where a point is not what the files write."""
    if decimal == ".":
        return text
    return f"CASE WHEN NOT contains({text}, '.') THEN replace({text}, {literal(decimal)}, '.') END"


def time_of(text: str, layout: str) -> str:
    """SQL of a time (of UTC) by its text; null where it is none."""
    if layout not in _PER_SECOND:
        return f"try_strptime({text}, {literal(layout)})::TIMESTAMP"
    seconds = f"(TRY_CAST({text} AS DOUBLE) / {_PER_SECOND[layout]})"
    within = f"{seconds} BETWEEN {_SECONDS[0]} AND {_SECONDS[1]} AND NOT contains({text}, '_')"
    return f"CASE WHEN {within} THEN make_timestamp(round({seconds} * 1000000)::BIGINT) END"


def typed_sql(column: str, text: str, kind: str, raw_format: RawFormat) -> str | None:
    """SQL of a column's value by its text, null where it is none; None where a cast tells."""
    if kind == TIME_TYPE and column in raw_format.times:
        return time_of(text, raw_format.times[column])
    if raw_format.decimal != "." and (kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL")):
        return f"TRY_CAST({number_text(text, raw_format.decimal)} AS {kind})"
    return None


def time_columns(
    connection: duckdb.DuckDBPyConnection, raw_format: RawFormat, columns: Collection[str]
) -> dict[str, str]:
    """The columns of ``format.times`` with their type.

    Raises:
        UserError: one is not there, or its layout is none.
    """
    for column, layout in raw_format.times.items():
        key = f"format.times.{column}"
        if column not in columns:
            raise UserError(f"{key}: no such column; the files have {', '.join(columns)}")
        try:
            connection.execute(f"SELECT {time_of(literal(''), layout)}").fetchall()
        except duckdb.Error as error:
            reason = str(error).splitlines()[0].rpartition(": ")[2]
            raise UserError(
                f"{key}: {layout!r} ({reason}); allowed: unix, unix_ms, or a layout such as "
                "'%d/%m/%Y %H:%M:%S'"
            ) from None
    return dict.fromkeys(raw_format.times, TIME_TYPE)
