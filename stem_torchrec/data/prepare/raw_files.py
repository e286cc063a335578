"""Raw delimited or Parquet files as one DuckDB relation: found, named, typed, and read strictly."""

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import duckdb

from stem_torchrec.data.prepare.describe import RawFormat
from stem_torchrec.data.prepare.raw_errors import readable_errors
from stem_torchrec.data.prepare.raw_headers import column_names, find_files
from stem_torchrec.data.prepare.sql_text import SqlText
from stem_torchrec.data.prepare.working_database import fetch_one, literal, quoted
from stem_torchrec.errors import UserError

SAMPLE_ROWS = 20_000

_DETECTED = {
    # A leading 0 belongs to a code, not to a number.
    "BIGINT": "regexp_full_match({0}, '[+-]?(0|[1-9][0-9]{{0,17}})')",
    "DOUBLE": "TRY_CAST({0} AS DOUBLE) IS NOT NULL AND NOT regexp_matches({0}, '^[+-]?0[0-9]')",
    "TIMESTAMP": "TRY_CAST({0} AS TIMESTAMP) IS NOT NULL",
}


@dataclass(frozen=True)
class RawFiles:
    """Files that are read as one, in this order.

    Attributes:
        columns: DuckDB type by column.
        bad_rows: what to do with lines that are no rows of these columns.
        found_types: columns whose type was found in the first rows.
    """

    paths: tuple[Path, ...]
    format: RawFormat
    columns: dict[str, str]
    bad_rows: Literal["fail", "record", "pass over"] = "fail"
    found_types: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def relation(self) -> str:
        """What stands behind FROM: the columns with their types."""
        # glob.escape: DuckDB reads "*" and "[" in a path as a pattern.
        paths = ", ".join(literal(glob.escape(str(path))) for path in self.paths)
        if self.format.type == "parquet":
            return f"read_parquet([{paths}])"
        # Everything is read as text and cast here: the reader's own casts round 0.5 to an integer.
        selected = [
            f"TRY_CAST({quoted(name)} AS {kind}) AS {quoted(name)}, {quoted(name)} AS {_text(name)}"
            for name, kind in self.columns.items()
        ]
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in self.columns)
        quote = literal(self.format.quote or "")
        nulls = ", ".join(literal(text) for text in self.format.null_strings)
        rejects = ", ignore_errors = true" * (self.bad_rows != "fail")
        rejects += ", store_rejects = true" * (self.bad_rows == "record")
        return (
            f"(SELECT {', '.join(selected)} FROM "
            f"read_csv([{paths}], auto_detect = false, delim = {literal(self.format.delimiter)}, "
            f"header = {self.format.header}, quote = {quote}, escape = {quote}, "
            f"nullstr = [{nulls}], columns = {{{columns}}}{rejects}))"
        )

    def type_faults(self, used: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
        """SQL that is true where a value is not of its column's type; the same by column, each
        with SQL that says so."""
        if self.format.type == "parquet":
            return "false", []
        typed = {n: kind for n, kind in self.columns.items() if n in used and kind != "VARCHAR"}
        failed = {n: f"({_text(n)} IS NOT NULL AND {quoted(n)} IS NULL)" for n in typed}
        integers = [_text(name) for name, kind in typed.items() if kind == "BIGINT"]
        # One text of all integers is looked through faster than each.
        any_failed = [*failed.values()] + [_rounded(f"concat({', '.join(integers)})")] * any(
            integers
        )
        faults = []
        for name, kind in typed.items():
            rounded = f" OR coalesce({_rounded(_text(name))}, false)" * (kind == "BIGINT")
            hint = "; as in the first rows, format.types may state another"
            said = f" is no {kind}" + hint * (name in self.found_types)
            what = literal(f"column {name!r}: ")
            fault = f"concat({what}, left({_text(name)}, 80), {literal(said)})"
            faults.append((failed[name] + rounded, fault))
        return " OR ".join(any_failed) or "false", faults

    def only(self, path: Path) -> "RawFiles":
        return replace(self, paths=(path,))

    def passing_over(self) -> "RawFiles":
        """The same, without lines that are no rows and without a word about them."""
        return replace(self, bad_rows="pass over")


def open_raw_files(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[str | Path],
    raw_format: RawFormat,
    *,
    text_columns: Collection[str] = (),
    skip_bad_rows: bool = False,
) -> RawFiles:
    """Find the files and name and type their columns; reads their heads only.

    Args:
        text_columns: columns that are text whatever the first rows look like.
        skip_bad_rows: record lines that are no rows, and go on.

    Raises:
        UserError: no file is found or one is empty or unreadable, headers differ, or a type is
            given to a column that is not there.
    """
    paths = find_files(sources)
    if raw_format.type == "parquet":
        return _open_parquet(connection, paths, raw_format)
    names = column_names(paths, raw_format)
    for column in raw_format.types:
        if column not in names:
            raise UserError(
                f"format.types: unknown column {column!r}; the files have {', '.join(names)}"
            )
    columns = dict.fromkeys(names, "VARCHAR")
    detected = _detect_types(connection, RawFiles(paths, raw_format, columns))
    columns |= detected | dict.fromkeys(text_columns, "VARCHAR") | _given_types(raw_format)
    columns = {name: columns[name] for name in names}
    found = frozenset(names) - frozenset(raw_format.types)
    return RawFiles(paths, raw_format, columns, "record" if skip_bad_rows else "fail", found)


def used_columns(raw: RawFiles, expressions: Collection[str]) -> set[str]:
    """Columns that expressions may use: those whose names occur in them."""
    text = "\n".join(expressions).lower()
    return {name for name in raw.columns if name.lower() in text}


def _given_types(raw_format: RawFormat) -> dict[str, str]:
    if not raw_format.types:
        return {}
    with SqlText() as parser:
        return {
            column: parser.type_name(f"format.types.{column}", text)
            for column, text in raw_format.types.items()
        }


def _open_parquet(
    connection: duckdb.DuckDBPyConnection, paths: tuple[Path, ...], raw_format: RawFormat
) -> RawFiles:
    raw = RawFiles(paths, raw_format, {})
    with readable_errors(raw.paths):
        found = connection.execute(f"DESCRIBE SELECT * FROM {raw.relation()}").fetchall()
    return replace(raw, columns={name: type_name for name, type_name, *_ in found})


def _detect_types(connection: duckdb.DuckDBPyConnection, raw: RawFiles) -> dict[str, str]:
    """The narrowest of BIGINT, DOUBLE, TIMESTAMP and VARCHAR that fits the first rows."""
    with readable_errors(raw.paths):
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE head AS SELECT * FROM "
            f"{raw.passing_over().relation()} LIMIT {SAMPLE_ROWS}"
        )
        if not fetch_one(connection, "SELECT count(*) FROM head")[0]:
            # Not one good row: the strict reader names the first bad one, if there is any.
            connection.execute(f"SELECT count(COLUMNS(*)) FROM {raw.relation()}")
            raise UserError(f"--source: no rows in {', '.join(map(str, raw.paths[:3]))}")
    detected = {}
    for name in raw.columns:
        column = quoted(name)
        fits = ", ".join(
            f"bool_and({rule.format(column)}) FILTER ({column} IS NOT NULL)"
            for rule in _DETECTED.values()
        )
        answers = fetch_one(connection, f"SELECT {fits} FROM head")
        detected[name] = next(
            (kind for kind, fit in zip(_DETECTED, answers, strict=True) if fit), "VARCHAR"
        )
    connection.execute("DROP TABLE head")
    return detected


def _text(column: str) -> str:
    """A column as it was read."""
    return quoted(f"text of {column}")


def _rounded(text: str) -> str:
    """Signs of a number that a cast to an integer would round."""
    signs = [f"contains({text}, '{sign}')" for sign in ".eE"]
    return f"({' OR '.join(signs)})"
