"""Raw values to ids, counted in the train split only."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pyarrow as pa

from stem_torchrec.data.prefetch import prefetched
from stem_torchrec.prepare.engine.prepared import open_parquet
from stem_torchrec.prepare.engine.sql import quoted

_BATCH_ROWS = 16_384


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
    connection: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    *,
    row_group_rows: int = 131_072,
    finished: Callable[[pa.Table], pa.Table] | None = None,
) -> None:
    """Write a query's rows to a Parquet file, on the disk when this returns.

    Arrow writes it, for DuckDB writes no checksums of pages.

    Args:
        finished: makes the rows that are written of those that the query gives.
    """
    connection.execute("SELECT 0").fetchall()  # what was not fetched to its end is in the way
    reader = connection.sql(query).to_arrow_reader(_BATCH_ROWS)
    finished = finished or (lambda table: table)
    with open_parquet(path, finished(reader.schema.empty_table()).schema) as file:
        for table in _row_groups(reader, row_group_rows):
            file.write_table(finished(table), row_group_rows)
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _row_groups(reader: pa.RecordBatchReader, num_rows: int) -> Iterator[pa.Table]:
    """Tables of ``num_rows`` rows, the last one shorter, whatever batches a query gives."""
    pending: list[pa.Table] = []
    # While one row group is written, the query goes on.
    with closing(prefetched(_tables(reader), depth=1)) as tables:
        for table in tables:
            pending.append(table)
            while sum(part.num_rows for part in pending) >= num_rows:
                # In one piece: where batches end must not show in the file.
                joined = pa.concat_tables(pending)
                yield joined.slice(0, num_rows).combine_chunks()
                pending = [joined.slice(num_rows)]
    if any(part.num_rows for part in pending):
        yield pa.concat_tables(pending).combine_chunks()


def _tables(reader: pa.RecordBatchReader) -> Generator[pa.Table, None, None]:
    for batch in reader:
        yield pa.Table.from_batches([batch])
