"""Raw files as Arrow tables, as they are written: delimited files as texts."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from stem_torchrec.prepare.engine.sql import literal, quoted
from stem_torchrec.prepare.tables.describe import RawFormat
from stem_torchrec.prepare.tables.raw.checks import compressed, verify_compressed
from stem_torchrec.prepare.tables.raw.errors import readable_errors
from stem_torchrec.prepare.tables.raw.files import RawFiles, open_raw_files
from stem_torchrec.prepare.tables.raw.headers import column_names, find_files
from stem_torchrec.prepare.tables.raw.partitions import partition_types


def raw_columns(file: Path, raw_format: Mapping[str, Any]) -> list[str]:
    """Names of a raw file's columns.

    Raises:
        UserError: the file is missing or unreadable.
    """
    described = _as_written(raw_format)
    if described.type == "delimited":
        return list(_delimited(file, described).columns)
    with duckdb.connect() as connection:
        return list(open_raw_files(connection, [file], described).columns)


def raw_tables(
    file: Path, raw_format: Mapping[str, Any], columns: Sequence[str], num_rows: int
) -> Iterator[pa.Table]:
    """A file's columns in the order of its rows, about ``num_rows`` at a time, at least one table.

    Raises:
        UserError: the file is damaged, or a line is no row.
    """
    described = _as_written(raw_format)
    verify_compressed(compressed([file]), threads=1)
    selected = ", ".join(map(quoted, columns)) or f"{literal('')} AS {quoted('')}"
    with duckdb.connect() as connection, readable_errors([file]):
        if described.type == "delimited":
            raw = _delimited(file, described)
        else:
            raw = open_raw_files(connection, [file], described)
        reader = connection.sql(f"SELECT {selected} FROM {raw.relation()}").to_arrow_reader(
            num_rows
        )
        empty = True
        for batch in reader:
            empty = False
            yield pa.Table.from_batches([batch])
        if empty:
            yield reader.schema.empty_table()


def _delimited(file: Path, raw_format: RawFormat) -> RawFiles:
    """All columns as texts, those of its folders' names, too."""
    paths = find_files([file])
    names = column_names(paths, raw_format)
    partitions = partition_types(paths, names)
    columns = dict.fromkeys([*names, *partitions], "VARCHAR")
    return RawFiles(paths, raw_format, columns, partitions=partitions)


def _as_written(raw_format: Mapping[str, Any]) -> RawFormat:
    """The format without times: whoever encodes values makes times of those that are needed."""
    return RawFormat.model_validate({**raw_format, "times": {}})
