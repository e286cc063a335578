"""The SQL expressions of a description: bound to the raw columns before anything is read."""

import re
from dataclasses import dataclass

import duckdb

from stem_torchrec.data.prepare.describe import Description
from stem_torchrec.data.prepare.raw_files import RawFiles
from stem_torchrec.data.prepare.sql_text import SqlText
from stem_torchrec.data.prepare.working_database import quoted
from stem_torchrec.errors import UserError

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
TIME_TYPES = ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE", "TIMESTAMP_S", "TIMESTAMP_MS")


@dataclass(frozen=True)
class Expression:
    """A bound expression.

    Attributes:
        key: where the description has it, for messages.
        sql: in parentheses, over the raw columns.
        type: DuckDB's name of its type.
    """

    key: str
    sql: str
    type: str

    @property
    def is_integer(self) -> bool:
        return self.type.removesuffix("[]") in INTEGER_TYPES


def bind(connection: duckdb.DuckDBPyConnection, raw: RawFiles, key: str, text: str) -> Expression:
    """Check an expression of the user against the raw columns.

    Raises:
        UserError: it is no single expression over one row, calls what is no function of the row's
            values (see ``sql_text``), or names a column that is not there.
    """
    if text in raw.columns:  # whatever SQL would make of the word
        return bind_column(raw, key, text)
    with SqlText() as parser:
        parser.require_expression(key, text, raw.columns)
    sql = f"({text}\n)"  # the line break ends a comment
    source = f"(SELECT * FROM {raw.relation()})"
    try:
        # WHERE refuses what needs more than one row: aggregates and window functions.
        connection.execute(f"EXPLAIN SELECT 1 FROM {source} WHERE {sql} IS NOT NULL")
        found = connection.execute(f"DESCRIBE SELECT {sql} FROM {source}").fetchall()
    except (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException) as error:
        raise UserError(f"{key}: {_reason(str(error), raw)}") from None
    return Expression(key, sql, found[0][1])


def bind_column(raw: RawFiles, key: str, column: str) -> Expression:
    """A raw column by its exact name.

    Raises:
        UserError: there is no such column.
    """
    if column not in raw.columns:
        raise UserError(f"{key}: {_unknown(column, raw)}")
    return Expression(key, quoted(column), raw.columns[column])


def bind_value(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    key: str,
    column: str | None,
    expression: str | None,
) -> Expression:
    """What a description gives as a column or as an expression."""
    if expression is not None:
        return bind(connection, raw, f"{key}.expression", expression)
    assert column is not None
    return bind_column(raw, f"{key}.column", column)


def bound_features(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> dict[str, Expression]:
    """The expression of each feature by its name.

    Raises:
        UserError: as ``bind``; a bag that is neither a list nor has a separator, or its reverse.
    """
    bound = {}
    for feature in description.features:
        key, column = f"features.{feature.name}", feature.column or feature.name
        value = bind_value(connection, raw, key, column, feature.expression)
        is_list = value.type.endswith("]")
        if feature.kind == "bag" and is_list == (feature.separator is not None):
            need = "a list has no separator" if is_list else "separator: needed"
            raise UserError(f"{key}: {need}; a bag's value is a list, or text with a separator")
        if feature.kind != "bag" and is_list:
            raise UserError(f"{key}: kind {feature.kind!r}, but its value is a list, {value.type}")
        bound[feature.name] = value
    return bound


def text_columns(description: Description) -> list[str]:
    """Raw columns that hold several values in one text."""
    separated = [feature for feature in description.features if feature.separator is not None]
    return [f.column or f.name for f in separated if f.expression is None]


def _reason(text: str, raw: RawFiles) -> str:
    if unknown := re.search(r'Referenced column "(.*?)" not found', text):
        return _unknown(unknown.group(1), raw)
    return text.split("\n\nLINE", 1)[0].partition(": ")[2].replace("\n", " ")


def _unknown(column: str, raw: RawFiles) -> str:
    return f"unknown column {column!r}; the files have {', '.join(raw.columns)}"
