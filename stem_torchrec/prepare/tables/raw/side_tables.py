"""The side tables of a description, opened and checked before a row is read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import INTEGER_TYPES, WIDE_INTEGER_TYPES
from stem_torchrec.prepare.engine.sql import quoted
from stem_torchrec.prepare.tables.describe import SideTable
from stem_torchrec.prepare.tables.raw.checks import verify_compressed
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.files import RawFiles, open_raw_files
from stem_torchrec.prepare.tables.raw.headers import find_files
from stem_torchrec.prepare.tables.raw.joins import Side


def side_files(tables: Mapping[str, SideTable]) -> list[Path]:
    """The files of all tables.

    Raises:
        UserError: one is missing or unreadable.
    """
    return [path for name, table in tables.items() for path in _files(name, table)]


def with_side_tables(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, tables: Mapping[str, SideTable]
) -> RawFiles:
    """Raw files whose rows have the columns of their side tables, too.

    Raises:
        UserError: a key is missing or of another type than the rows', or has several rows; a
            column has a name that is taken; names the table, with an example.
    """
    for name, table in tables.items():
        raw = _joined(connection, raw, name, table)
    return raw


def _joined(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, name: str, table: SideTable
) -> RawFiles:
    side = _open(connection, name, table)
    _require_one_way(name, table, raw)
    for own, other in table.keys.items():
        if own not in raw.columns:
            raise UserError(
                f"tables.{name}.on: unknown column {own!r}; the files have {', '.join(raw.columns)}"
            )
        if other not in side.columns:
            raise UserError(
                f"tables.{name}.on: no column {other!r} in {_shown(side)}; it has "
                f"{', '.join(side.columns)}"
            )
        _require_one_type(connection, raw, side, (name, own, other))
    _require_one_row(connection, side, name, table)
    columns = _columns(raw, side, name, table)
    types = {beside: side.columns[column] for beside, column in columns.items()}
    joined = Side(
        name,
        table.keys,
        columns,
        types,
        frozenset(beside for beside, column in columns.items() if column in side.found_types),
        side.relation(),
        has_texts=side.format.type == "delimited",
        may_miss=table.missing == "allow",
        shown=_shown(side),
    )
    return replace(
        raw,
        columns=raw.columns | types,
        found_types=raw.found_types | joined.found_types,
        sides=(*raw.sides, joined),
    )


def _files(name: str, table: SideTable) -> tuple[Path, ...]:
    try:
        return find_files(table.sources)
    except UserError as error:
        raise UserError(f"tables.{name}.source: {str(error).removeprefix('--source: ')}") from None


def _open(connection: duckdb.DuckDBPyConnection, name: str, table: SideTable) -> RawFiles:
    files = _files(name, table)
    verify_compressed(files, threads=1)
    try:
        return open_raw_files(connection, files, table.format)
    except UserError as error:
        raise UserError(f"tables.{name}: {str(error).removeprefix('--source: ')}") from None


def _columns(raw: RawFiles, side: RawFiles, name: str, table: SideTable) -> dict[str, str]:
    """The columns that are taken, by their names beside those of the rows."""
    for column in table.columns or ():
        if column not in side.columns:
            raise UserError(
                f"tables.{name}.columns: no column {column!r} in {_shown(side)}; it has "
                f"{', '.join(side.columns)}"
            )
    keys = set(table.keys.values())
    wanted = [c for c in table.columns or side.columns if c not in keys]
    taken = {column.lower() for column in raw.columns}
    for column in wanted:
        if (table.prefix + column).lower() in taken:
            raise UserError(
                f"tables.{name}: column {table.prefix + column!r} is one of the rows already; give "
                f"prefix, e.g. {name}_, or columns: those to take of {', '.join(wanted)}"
            )
    return {table.prefix + column: column for column in wanted}


def _require_one_way(name: str, table: SideTable, raw: RawFiles) -> None:
    """Of writing values: a request has all columns in one row."""
    keys = ["decimal"]
    if "delimited" == raw.format.type == table.format.type:
        keys.append("null_strings")
    for key in keys:
        found, allowed = getattr(table.format, key), getattr(raw.format, key)
        if found != allowed:
            raise UserError(
                f"tables.{name}.format.{key}: {found!r}; allowed: that of format, {allowed!r}, "
                "for a request has the columns of all tables in one row"
            )
    if table.format.times:
        raise UserError(
            f"tables.{name}.format.times: {', '.join(table.format.times)}; allowed: none, an "
            "expression of a feature may read the text (strptime)"
        )


def _require_one_type(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, side: RawFiles, key: tuple[str, str, str]
) -> None:
    name, own, other = key
    types = raw.columns[own], side.columns[other]
    if _family(types[0]) != _family(types[1]):
        value = f"{quoted(other)}::VARCHAR"
        found = connection.execute(
            f"SELECT left({value}, 80) FROM {side.relation()} WHERE {quoted(other)} IS NOT NULL "
            f"ORDER BY TRY_CAST({value} AS {types[0]}) IS NOT NULL LIMIT 1"
        ).fetchone()
        example = f", e.g. {found[0]!r}" if found else ""
        raise UserError(
            f"tables.{name}.on: {own!r} is {types[0]} in {_shown(raw)}, but {other!r} is "
            f"{types[1]} in {_shown(side)}{example}; allowed: one type in both (format.types may "
            "state it)"
        )
    wrong, faults = side.type_faults({other})
    with readable_errors(side.paths):
        for _, fault in faults:
            found = connection.execute(
                f"SELECT {fault} FROM {side.relation()} WHERE {wrong} LIMIT 1"
            ).fetchone()
            if found:
                raise UserError(f"{_shown(side)}: {found[0]}")


def _require_one_row(
    connection: duckdb.DuckDBPyConnection, side: RawFiles, name: str, table: SideTable
) -> None:
    keys = [quoted(column) for column in table.keys.values()]
    known = " AND ".join(f"{key} IS NOT NULL" for key in keys)
    shown = ", ".join(f"left({key}::VARCHAR, 80)" for key in keys)
    with readable_errors(side.paths):
        found = connection.execute(
            f"SELECT count(*) AS n, {shown} FROM {side.relation()} WHERE {known} "
            f"GROUP BY {', '.join(keys)} HAVING n > 1 ORDER BY ALL LIMIT 1"
        ).fetchone()
    if found:
        count, *values = found
        example = ", ".join(f"{k} {v}" for k, v in zip(table.keys.values(), values, strict=True))
        raise UserError(
            f"tables.{name}: {example} has {count} rows in {_shown(side)}, so that a row with it "
            f"would become {count}; allowed: one row for each {', '.join(table.keys.values())}"
        )


def _family(type_name: str) -> str:
    """Types whose equal values are equal."""
    return "integer" if type_name in (*INTEGER_TYPES, *WIDE_INTEGER_TYPES) else type_name


def _shown(raw: RawFiles) -> str:
    more = len(raw.paths) - 1
    return raw.paths[0].name + (f" and {more} more files" if more else "")
