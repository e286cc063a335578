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


def raw_columns(file: Path, raw_format: Mapping[str, Any]) -> list[str]:
    """Names of a raw file's columns.

    Raises:
        UserError: the file is missing or unreadable.
    """
    described = RawFormat.model_validate(raw_format)
    if described.type == "delimited":
        return column_names(find_files([file]), described)
    with duckdb.connect() as connection:
        return list(open_raw_files(connection, [file], described).columns)


def raw_tables(
    file: Path, raw_format: Mapping[str, Any], columns: Sequence[str], num_rows: int
) -> Iterator[pa.Table]:
    """A file's columns in the order of its rows, about ``num_rows`` at a time, at least one table.

    Raises:
        UserError: the file is damaged, or a line is no row.
    """
    described = RawFormat.model_validate(raw_format)
    verify_compressed(compressed([file]), threads=1)
    selected = ", ".join(map(quoted, columns)) or f"{literal('')} AS {quoted('')}"
    with duckdb.connect() as connection, readable_errors([file]):
        if described.type == "delimited":
            names = column_names((file,), described)
            raw = RawFiles((file,), described, dict.fromkeys(names, "VARCHAR"))
        else:
            as_they_are = described.model_copy(update={"times": {}})
            raw = open_raw_files(connection, [file], as_they_are)
        reader = connection.sql(f"SELECT {selected} FROM {raw.relation()}").to_arrow_reader(
            num_rows
        )
        empty = True
        for batch in reader:
            empty = False
            yield pa.Table.from_batches([batch])
        if empty:
            yield reader.schema.empty_table()
