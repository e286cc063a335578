"""DuckDB types of the columns of delimited files: stated, or found in rows; and what is no such."""

from collections.abc import Collection

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import (
    INTEGER_TYPES,
    WIDE_INTEGER_TYPES,
    is_integer_sql,
)
from stem_torchrec.prepare.engine.sql import fetch_one, quoted
from stem_torchrec.prepare.engine.sql_text import SqlText
from stem_torchrec.prepare.tables.describe import RawFormat
from stem_torchrec.prepare.tables.raw.written import number_text

_FLOAT_TYPES = ("FLOAT", "DOUBLE")
_TIMESTAMP_TYPES = ("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS")
_ZONED = "TIMESTAMP WITH TIME ZONE"
# An offset or a zone behind a time, which a cast to TIMESTAMP would drop; Z is UTC, as all times.
_HAS_ZONE = "regexp_matches({0}, ':[0-9.]+ *([+-][0-9:]+|[A-Za-z_/]{{2,}}[A-Za-z_/+0-9-]*)$')"

# The narrowest first. A leading 0 belongs to a code, not to a number; integers that a float cannot
# hold are none.
_DETECTED = {
    "BIGINT": f"{is_integer_sql('{0}')}",
    "DOUBLE": "TRY_CAST({0} AS DOUBLE) IS NOT NULL "
    "AND NOT regexp_matches({0}, '^[+-]?0[0-9]|_|^[+-]?[0-9]{{16,}}$')",
    "TIMESTAMP": f"TRY_CAST({{0}} AS TIMESTAMP) IS NOT NULL AND NOT {_HAS_ZONE}",
    _ZONED: "TRY_CAST({0} AS TIMESTAMPTZ) IS NOT NULL",
}


def stated_types(raw_format: RawFormat, columns: Collection[str]) -> dict[str, str]:
    """``format.types`` with the names that DuckDB itself gives the types.

    Raises:
        UserError: a column is not there, or a type is none.
    """
    if not raw_format.types:
        return {}
    for column in raw_format.types:
        if column not in columns:
            raise UserError(
                f"format.types: unknown column {column!r}; the files have {', '.join(columns)}"
            )
    with SqlText() as parser:
        return {
            column: parser.type_name(f"format.types.{column}", name)
            for column, name in raw_format.types.items()
        }


def detect_types(
    connection: duckdb.DuckDBPyConnection, table: str, columns: Collection[str], decimal: str = "."
) -> dict[str, str]:
    """The narrowest type that fits all texts of each column of a table, else VARCHAR."""
    detected = {}
    for name in columns:
        column = quoted(name)
        texts = {"DOUBLE": f"({number_text(column, decimal)})"}
        fits = ", ".join(
            f"bool_and({rule.format(texts.get(kind, column))}) FILTER ({column} IS NOT NULL)"
            for kind, rule in _DETECTED.items()
        )
        answers = fetch_one(connection, f"SELECT {fits} FROM {table}")
        detected[name] = next(
            (kind for kind, fit in zip(_DETECTED, answers, strict=True) if fit), "VARCHAR"
        )
    return detected


def type_fault_sql(text: str, value: str, kind: str) -> str:
    """SQL that is true where a text is no value of the type to which it was cast.

    DuckDB's casts take more for numbers and times than are written as such: ``007``, ``0x1F``,
    ``1_23``, ``1.5`` as the integer 2, a time without its offset.
    """
    if kind in (*INTEGER_TYPES, *WIDE_INTEGER_TYPES):
        return f"({value}::VARCHAR IS DISTINCT FROM {text})"
    failed = f"({text} IS NOT NULL AND {value} IS NULL)"
    if kind in _FLOAT_TYPES:
        return f"({failed} OR coalesce(contains({text}, '_'), false))"
    if kind in _TIMESTAMP_TYPES:
        return f"({failed} OR coalesce({_HAS_ZONE.format(text)}, false))"
    return failed
