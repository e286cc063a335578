"""Raw values to ids, counted in the train split only."""

import os
from pathlib import Path

import duckdb

from stem_torchrec.data.prepare.prepared import COMPRESSION
from stem_torchrec.data.prepare.working_database import literal, quoted


def vocabulary_table(feature: str) -> str:
    """The table of a feature's vocabulary as a SQL identifier."""
    return quoted(f"vocab_{feature}")


def create_vocabulary(
    connection: duckdb.DuckDBPyConnection, feature: str, counted: str, *, min_count: int
) -> int:
    """Create the table ``vocab_FEATURE`` (value, id, count); returns the rows its table needs.

    Ids run from 1 by falling count; 0 is left to rare, unseen and missing values.

    Args:
        counted: a query with the columns ``value`` and ``count``, values of the train split only;
            nulls are left out and counts of one value added up.
        min_count: values that occur less often get no id.
    """
    connection.execute(
        f"""
        CREATE TABLE {vocabulary_table(feature)} AS
        SELECT value, row_number() OVER (ORDER BY count DESC, value)::INTEGER AS id, count
        FROM (
            SELECT value, sum(count)::BIGINT AS count FROM ({counted})
            WHERE value IS NOT NULL GROUP BY value HAVING sum(count) >= {min_count}
        )
        ORDER BY id
        """
    )
    found = connection.execute(f"SELECT count(*) FROM {vocabulary_table(feature)}").fetchone()
    assert found is not None
    return int(found[0]) + 1


def write_vocabulary(connection: duckdb.DuckDBPyConnection, feature: str, folder: Path) -> None:
    """Write ``folder/FEATURE.parquet`` in the order of the ids."""
    query = f"SELECT * FROM {vocabulary_table(feature)} ORDER BY id"
    copy_to(connection, query, folder / f"{feature}.parquet")


def copy_to(
    connection: duckdb.DuckDBPyConnection, query: str, path: Path, *, row_group_rows: int = 131_072
) -> None:
    """Write a query's rows to a Parquet file, on the disk when this returns."""
    connection.execute(
        f"COPY ({query}) TO {literal(str(path))} (FORMAT parquet, COMPRESSION '{COMPRESSION}', "
        f"ROW_GROUP_SIZE {row_group_rows}, USE_TMP_FILE false)"
    )
    with path.open("rb") as file:
        os.fsync(file.fileno())
