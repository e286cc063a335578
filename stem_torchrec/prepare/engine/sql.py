"""Words of SQL: names, texts, and the one row of an answer."""

import glob
from pathlib import Path

import duckdb


def quoted(name: str) -> str:
    """A name as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def fetch_one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    """The first row of a query that has one."""
    found = connection.execute(query).fetchone()
    assert found is not None
    return found


def parquet_relation(file: Path) -> str:
    """What stands behind FROM for one Parquet file."""
    return f"read_parquet({literal(glob.escape(str(file)))})"  # "*" and "[" make a pattern
