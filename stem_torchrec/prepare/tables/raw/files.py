"""Raw delimited or Parquet files as one DuckDB relation: found, named, typed, and read strictly."""

import glob
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow.parquet as pq

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import text_column
from stem_torchrec.prepare.engine.sql import fetch_one, literal, quoted
from stem_torchrec.prepare.tables.describe import RawFormat
from stem_torchrec.prepare.tables.raw.checks import refuse_other_compression
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.headers import column_names, find_files
from stem_torchrec.prepare.tables.raw.joins import Side, joined_sql
from stem_torchrec.prepare.tables.raw.partitions import partition_sql, partition_types
from stem_torchrec.prepare.tables.raw.types import detect_types, stated_types, type_fault_sql
from stem_torchrec.prepare.tables.raw.written import TIME_TYPE, time_columns, typed_sql

SAMPLE_ROWS = 20_000

_FILE = "\x02file"  # a name that no header has
FILE_COLUMN = quoted(_FILE)
"""The path of a row's file, as a SQL identifier."""


@dataclass(frozen=True)
class RawFiles:
    """Files that are read as one, in this order.

    Attributes:
        columns: DuckDB type by column.
        bad_rows: what to do with lines that are no rows of these columns.
        found_types: columns of delimited files whose type was found in the first rows.
        partitions: DuckDB types of the columns that the names of the files' folders hold.
        with_names: rows have the column ``FILE_COLUMN``, the path of their file.
        sides: tables whose columns are joined to the rows; they are among ``columns``.
    """

    paths: tuple[Path, ...]
    format: RawFormat
    columns: dict[str, str]
    bad_rows: Literal["fail", "record", "pass over"] = "fail"
    found_types: frozenset[str] = frozenset()
    partitions: Mapping[str, str] = field(default_factory=dict)
    with_names: bool = False
    sides: tuple[Side, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def relation(self) -> str:
        """What stands behind FROM: the columns with their types."""
        return self._joined(self._own())

    def head(self) -> str:
        """``relation`` of the first rows, without lines that are no rows."""
        first = f"(SELECT * FROM {self.passing_over()._own()} LIMIT {SAMPLE_ROWS})"
        return self._joined(first)

    @property
    def from_elsewhere(self) -> frozenset[str]:
        """Columns that are not in the files themselves."""
        return frozenset(self.partitions).union(*(side.columns for side in self.sides))

    @property
    def _own_columns(self) -> list[str]:
        """Columns without those of side tables."""
        beside = frozenset().union(*(side.columns for side in self.sides))
        return [name for name in self.columns if name not in beside]

    @property
    def join_keys(self) -> frozenset[str]:
        """Columns by which tables are joined."""
        return frozenset().union(*(side.keys for side in self.sides))

    @property
    def join_faults(self) -> list[tuple[str, str]]:
        """SQL that is true for a row that finds no row where it must, and SQL that says so."""
        return [side.fault for side in self.sides if not side.may_miss]

    def _joined(self, rows: str) -> str:
        return joined_sql(rows, self.sides) if self.sides else rows

    def _own(self) -> str:
        """``relation`` without side tables."""
        # glob.escape: DuckDB reads "*" and "[" in a path as a pattern.
        paths = ", ".join(literal(glob.escape(str(path))) for path in self.paths)
        if self.format.type == "parquet":
            return self._parquet(paths)
        # Everything is read as text and cast here: the reader's own casts round 0.5 to an integer.
        texts = {
            name: partition_sql(name, FILE_COLUMN) if name in self.partitions else quoted(name)
            for name in self._own_columns
        }
        selected = [
            f"{self._typed(name, texts[name])} AS {quoted(name)}, {texts[name]} AS {_text(name)}"
            for name in texts
        ]
        selected += [FILE_COLUMN] * self.with_names
        in_files = [name for name in texts if name not in self.partitions]
        columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in in_files)
        quote = literal(self.format.quote or "")
        nulls = ", ".join(literal(text) for text in self.format.null_strings)
        further = self._file_names + ", ignore_errors = true" * (self.bad_rows != "fail")
        further += ", store_rejects = true" * (self.bad_rows == "record")
        return (
            f"(SELECT {', '.join(selected)} FROM "
            f"read_csv([{paths}], auto_detect = false, delim = {literal(self.format.delimiter)}, "
            f"header = {self.format.header}, quote = {quote}, escape = {quote}, "
            f"nullstr = [{nulls}], columns = {{{columns}}}, hive_partitioning = false{further}))"
        )

    def written(self, column: str) -> str:
        """SQL of the text that a delimited file has in a column."""
        return _text(column)

    def type_faults(self, used: Collection[str]) -> tuple[str, list[tuple[str, str]]]:
        """SQL that is true where a value is not of its column's type; the same by column, each
        with SQL that says so."""
        texts = frozenset().union(*(side.columns for side in self.sides if side.has_texts))
        own = frozenset(self._own_columns)
        texts |= own if self.format.type == "delimited" else own & self.format.times.keys()
        used = texts.intersection(used)
        typed = {n: kind for n, kind in self.columns.items() if n in used and kind != "VARCHAR"}
        faults = []
        for name, kind in typed.items():
            hint = "; as in the first rows, format.types may state another"
            said = f" is no {kind}" + hint * (name in self.found_types)
            if name in own and (layout := self.format.times.get(name)):
                said = f" is no time as format.times has it, {layout!r}"
            what = literal(f"column {name!r}: ")
            fault = f"concat({what}, left({_text(name)}, 80), {literal(said)})"
            faults.append((self._wrong_type(name), fault))
        return " OR ".join(wrong for wrong, _ in faults) or "false", faults

    def wrong_types(self, used: Collection[str]) -> dict[str, str]:
        """By column, SQL that is true where its text is no value of its type; those without a type
        of their own are left out."""
        return {
            name: self._wrong_type(name)
            for name, kind in self.columns.items()
            if name in used and kind != "VARCHAR"
        }

    def typed_values(self) -> dict[str, str]:
        """By column, SQL of its value by its text, where a cast does not give it."""
        found = {
            name: typed_sql(name, _text(name), kind, self.format)
            for name, kind in self.columns.items()
        }
        return {name: sql for name, sql in found.items() if sql is not None}

    def _typed(self, name: str, text: str) -> str:
        kind = self.columns[name]
        return typed_sql(name, text, kind, self.format) or f"TRY_CAST({text} AS {kind})"

    def _wrong_type(self, name: str) -> str:
        """SQL that is true where a column's text is no value of its type."""
        if name in self.format.times and name in self._own_columns:
            return f"({_text(name)} IS NOT NULL AND {quoted(name)} IS NULL)"
        return type_fault_sql(_text(name), quoted(name), self.columns[name])

    def only(self, path: Path) -> "RawFiles":
        return replace(self, paths=(path,))

    def passing_over(self) -> "RawFiles":
        """The same, without lines that are no rows and without a word about them."""
        return replace(self, bad_rows="pass over")

    @property
    def _file_names(self) -> str:
        needed = self.with_names or (self.partitions and self.format.type == "delimited")
        return f", filename = {literal(_FILE)}" if needed else ""

    def _parquet(self, paths: str) -> str:
        types = ", ".join(f"{literal(name)}: {kind}" for name, kind in self.partitions.items())
        hive = f"true, hive_types = {{{types}}}" if self.partitions else "false"
        rows = f"read_parquet([{paths}], hive_partitioning = {hive}{self._file_names})"
        # No function takes nanoseconds with a zone; their zone is that of the reader, not of a row.
        zoned = [n for n in self._own_columns if self.columns[n] == "TIMESTAMP_NS"]
        naive = ", ".join(f"make_timestamp_ns(epoch_ns({n})) AS {n}" for n in map(quoted, zoned))
        times = [name for name in self.format.times if self.columns.get(name) == TIME_TYPE]
        timed = [f"{self._typed(n, f'{quoted(n)}::VARCHAR')} AS {quoted(n)}" for n in times]
        texts = "".join(f", {quoted(n)}::VARCHAR AS {_text(n)}" for n in times)
        replaced = ", ".join([*([naive] if zoned else []), *timed])
        return f"(SELECT * REPLACE ({replaced}){texts} FROM {rows})" if replaced else rows


def open_raw_files(
    connection: duckdb.DuckDBPyConnection,
    sources: Sequence[str | Path],
    raw_format: RawFormat,
    *,
    skip_bad_rows: bool = False,
    known_types: Mapping[str, str] | None = None,
    with_names: bool = False,
) -> RawFiles:
    """Find the files and name and type their columns; reads their heads only.

    Args:
        skip_bad_rows: record lines that are no rows, and go on.
        known_types: of columns of delimited files whose type others have told already.
        with_names: as in ``RawFiles``.

    Raises:
        UserError: no file is found or one is empty or unreadable, headers differ, or a type is
            given to a column that is not there.
    """
    paths = find_files(sources)
    if raw_format.type == "parquet":
        return replace(_open_parquet(connection, paths, raw_format), with_names=with_names)
    refuse_other_compression(paths)
    names = column_names(paths, raw_format)
    partitions = partition_types(paths, names)
    stated = stated_types(raw_format, [*names, *partitions])
    stated |= time_columns(connection, raw_format, names)
    columns = dict.fromkeys(names, "VARCHAR")
    columns |= _detect_types(connection, RawFiles(paths, raw_format, columns)) | partitions
    columns |= {name: kind for name, kind in (known_types or {}).items() if name in columns}
    return RawFiles(
        paths,
        raw_format,
        columns | stated,
        "record" if skip_bad_rows else "fail",
        found_types=frozenset(names) - frozenset(stated),
        partitions=partitions,
        with_names=with_names,
    )


def _open_parquet(
    connection: duckdb.DuckDBPyConnection, paths: tuple[Path, ...], raw_format: RawFormat
) -> RawFiles:
    raw = RawFiles(paths, raw_format, {})
    with readable_errors(raw.paths):
        found = connection.execute(f"DESCRIBE SELECT * FROM {raw.relation()}").fetchall()
        in_file = pq.read_schema(paths[0]).names
    columns = {name: type_name for name, type_name, *_ in found}
    # Of two columns that differ in case alone DuckDB gives the second another name.
    renamed = {name for name in columns if name not in in_file}
    columns = {
        name: "TIMESTAMP_NS" if kind == "TIMESTAMPTZ_NS" else kind
        for name, kind in columns.items()
        if name not in renamed
    }
    partitions = partition_types(paths, columns)
    columns |= time_columns(connection, raw_format, columns)
    return replace(raw, columns=columns | partitions, partitions=partitions)


def _detect_types(connection: duckdb.DuckDBPyConnection, raw: RawFiles) -> dict[str, str]:
    with readable_errors(raw.paths):
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE head AS SELECT * FROM "
            f"{raw.passing_over().relation()} LIMIT {SAMPLE_ROWS}"
        )
        if not fetch_one(connection, "SELECT count(*) FROM head")[0]:
            # Not one good row: the strict reader names the first bad one, if there is any.
            connection.execute(f"SELECT count(COLUMNS(*)) FROM {raw.relation()}")
            raise UserError(f"--source: no rows in {', '.join(map(str, raw.paths[:3]))}")
    detected = detect_types(connection, "head", raw.columns, raw.format.decimal)
    connection.execute("DROP TABLE head")
    return detected


def _text(column: str) -> str:
    """A column as it was read."""
    return quoted(text_column(column))
