"""Vocabularies that grow day after day: known values keep their ids, new ones get the next.

Ids run in the order of the days on which values reach the minimum count, counted over all days so
far. So they are the same whether the days are counted one by one or together.
"""

from pathlib import Path
from typing import NamedTuple

import duckdb

from stem_torchrec.prepare.engine.sql import fetch_one, parquet_relation, quoted
from stem_torchrec.prepare.engine.vocabulary import copy_to, vocabulary_table

_BEFORE = "DATE '0001-01-01'"
"""The day of all that earlier commands have counted."""

_KNOWN, _COUNTED = "known_values", "counted_values"


class CountedBefore(NamedTuple):
    """What the days so far have counted of a feature's values.

    Attributes:
        vocabulary: file of those with an id: ``value``, ``id``, ``count``.
        rare: file of the others: ``value``, ``count``.
    """

    vocabulary: Path
    rare: Path


def rare_table(feature: str) -> str:
    """The table of the counted values without an id as a SQL identifier."""
    return quoted(f"rare_{feature}")


def grow_vocabulary(
    connection: duckdb.DuckDBPyConnection,
    feature: str,
    counted: str,
    *,
    min_count: int,
    before: CountedBefore | None = None,
    frozen: bool = False,
) -> int:
    """Create ``vocab_FEATURE`` (value, id, count) and ``rare_FEATURE`` (value, count); returns the
    rows that the feature's table needs.

    Of the values that reach the minimum count on one day the most frequent ones come first, equal
    ones by their text, which does not depend on whether they are held as integers.

    Args:
        counted: a query with the columns ``value``, ``day`` and ``count``, values of train only;
            nulls are left out.
        min_count: values that have occurred less often get no id.
        before: None on the first day.
        frozen: count, but give no value an id.
    """
    _create_counts(connection, counted, before)
    added = "SELECT value, 0 AS place FROM total WHERE false" if frozen else _added(min_count)
    connection.execute(
        f"""
        CREATE TABLE {vocabulary_table(feature)} AS
        WITH total AS (
            SELECT value, sum(count)::BIGINT AS count FROM {_COUNTED} GROUP BY value
        ), added AS ({added})
        SELECT value, id, {_KNOWN}.count + coalesce(total.count, 0) AS count
        FROM {_KNOWN} LEFT JOIN total USING (value)
        UNION ALL
        SELECT value, ((SELECT count(*) FROM {_KNOWN}) + place)::INTEGER, count
        FROM added JOIN total USING (value)
        ORDER BY id
        """
    )
    connection.execute(
        f"""
        CREATE TABLE {rare_table(feature)} AS
        SELECT value, sum(count)::BIGINT AS count
        FROM {_COUNTED} ANTI JOIN {vocabulary_table(feature)} USING (value)
        GROUP BY value
        """
    )
    for table in (_KNOWN, _COUNTED):
        connection.execute(f"DROP TABLE {table}")
    return int(fetch_one(connection, f"SELECT count(*) + 1 FROM {vocabulary_table(feature)}")[0])


def write_rare(connection: duckdb.DuckDBPyConnection, feature: str, folder: Path) -> None:
    """Write ``folder/FEATURE.parquet`` in the order of the values."""
    folder.mkdir(exist_ok=True)
    query = f"SELECT * FROM {rare_table(feature)} ORDER BY value"
    copy_to(connection, query, folder / f"{feature}.parquet")


def count_distinct(connection: duckdb.DuckDBPyConnection, feature: str) -> int:
    """Values of train so far, with an id and without one."""
    tables = vocabulary_table(feature), rare_table(feature)
    return sum(fetch_one(connection, f"SELECT count(*) FROM {table}")[0] for table in tables)


def _create_counts(
    connection: duckdb.DuckDBPyConnection, counted: str, before: CountedBefore | None
) -> None:
    """The values with an id (value, id, count), and the counts of the days and of all before."""
    known, rare = before or (None, None)
    connection.execute(f"CREATE TABLE {_COUNTED} AS FROM ({counted}) WHERE value IS NOT NULL")
    described = connection.execute(f"DESCRIBE {_COUNTED}").fetchall()
    of_type = next(kind for name, kind, *_ in described if name == "value")
    nothing = f"(SELECT value, 1::INTEGER AS id, 1::BIGINT AS count FROM {_COUNTED} WHERE false)"
    connection.execute(
        f"CREATE TABLE {_KNOWN} AS SELECT value::{of_type} AS value, id, count "
        f"FROM {nothing if known is None else parquet_relation(known)}"
    )
    if rare is not None:
        connection.execute(
            f"INSERT INTO {_COUNTED} BY NAME "
            f"SELECT value::{of_type} AS value, {_BEFORE} AS day, count "
            f"FROM {parquet_relation(rare)}"
        )


def _added(min_count: int) -> str:
    """Query of the values that get an id, and their places among these from 1 on."""
    return f"""
        SELECT value, row_number() OVER (ORDER BY day, count DESC, value::VARCHAR) AS place
        FROM (
            SELECT value, min(day) AS day, min(count) AS count FROM (
                SELECT value, day, sum(count) OVER (PARTITION BY value ORDER BY day) AS count
                FROM {_COUNTED} ANTI JOIN {_KNOWN} USING (value)
                SEMI JOIN (FROM total WHERE count >= {min_count}) USING (value)
            ) WHERE count >= {min_count} GROUP BY value
        )
    """
