"""The SQL expressions of a description: bound to the raw columns before anything is read."""

import re
from dataclasses import dataclass

import duckdb

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.sql import quoted
from stem_torchrec.prepare.engine.sql_text import SqlText
from stem_torchrec.prepare.tables.column_references import columns_decisive, columns_read
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.raw.files import RawFiles

TIME_TYPES = (
    *("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"),
    *("TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"),
)


@dataclass(frozen=True)
class Expression:
    """A bound expression.

    Attributes:
        key: where the description has it, for messages.
        sql: in parentheses, over the raw columns.
        type: DuckDB's name of its type.
        reads: the raw columns in it.
        decides: those on which its value depends where it is not null (see ``columns_decisive``).
        is_unstated: one column of a delimited file as it is written there, of a type that nobody
            has said.
        decimal: what parts a number's fraction off in it.
    """

    key: str
    sql: str
    type: str
    reads: frozenset[str]
    decides: frozenset[str]
    is_unstated: bool = False
    decimal: str = "."

    @property
    def is_list(self) -> bool:
        return self.type.endswith("]")

    @property
    def element_type(self) -> str:
        """The type of a value, or of a list's values."""
        return re.sub(r"\[\d*\]$", "", self.type)

    @property
    def typed(self) -> frozenset[str]:
        """Columns whose values must be of their column's type."""
        return frozenset() if self.is_unstated else self.reads


def bind(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    key: str,
    text: str,
    *,
    as_written: bool = True,
) -> Expression:
    """Check an expression of the user against the raw columns.

    Args:
        as_written: take a column whose type was found in the first rows as the text that it is.

    Raises:
        UserError: it is no single expression over one row, calls what is no function of the row's
            values (see ``sql_text``), or names a column that is not there.
    """
    if text in raw.columns:  # whatever SQL would make of the word
        return bind_column(raw, key, text, as_written=as_written)
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
    reads = columns_read(connection, text, raw.columns)
    decides = columns_decisive(connection, text, raw.columns)
    return Expression(key, sql, found[0][1], reads, decides)


def bind_column(raw: RawFiles, key: str, column: str, *, as_written: bool = True) -> Expression:
    """A raw column by its exact name (see ``bind``).

    Raises:
        UserError: there is no such column.
    """
    if column not in raw.columns:
        raise UserError(f"{key}: {_unknown(column, raw)}")
    reads = frozenset([column])
    if as_written and column in raw.found_types:
        text, decimal = raw.written(column), raw.format.decimal
        return Expression(key, text, "VARCHAR", reads, reads, is_unstated=True, decimal=decimal)
    return Expression(key, quoted(column), raw.columns[column], reads, reads)


def bind_value(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    key: str,
    column: str | None,
    expression: str | None,
    *,
    as_written: bool = True,
) -> Expression:
    """What a description gives as a column or as an expression (see ``bind``)."""
    if expression is not None:
        return bind(connection, raw, f"{key}.expression", expression, as_written=as_written)
    assert column is not None
    return bind_column(raw, f"{key}.column", column, as_written=as_written)


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
        if feature.kind == "bag" and value.is_list == (feature.separator is not None):
            need = "a list has no separator" if value.is_list else "separator: needed"
            raise UserError(f"{key}: {need}; a bag's value is a list, or text with a separator")
        if feature.kind != "bag" and value.is_list:
            raise UserError(f"{key}: kind {feature.kind!r}, but its value is a list, {value.type}")
        bound[feature.name] = value
    return bound


def _reason(text: str, raw: RawFiles) -> str:
    if unknown := re.search(r'Referenced column "(.*?)" not found', text):
        return _unknown(unknown.group(1), raw)
    return text.split("\n\nLINE", 1)[0].partition(": ")[2].replace("\n", " ")


def _unknown(column: str, raw: RawFiles) -> str:
    return f"unknown column {column!r}; the files have {', '.join(raw.columns)}"
