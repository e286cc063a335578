"""Which raw columns an expression reads, as DuckDB's own parser sees it."""

import json
from collections.abc import Collection
from typing import Any

import duckdb

from stem_torchrec.prepare.engine.sql import fetch_one, literal

# What names columns without their names: ``*``, ``COLUMNS(...)``, ``#1``.
_UNNAMED = ("STAR", "POSITIONAL_REFERENCE")


def columns_read(
    connection: duckdb.DuckDBPyConnection, expression: str, columns: Collection[str]
) -> frozenset[str]:
    """The ``columns`` that an expression names anywhere."""
    return _named(_parsed(connection, expression), columns)


def columns_decisive(
    connection: duckdb.DuckDBPyConnection, expression: str, columns: Collection[str]
) -> frozenset[str]:
    """The ``columns`` on which it depends what the expression is where it is not null.

    Where a CASE has one result besides NULL, its conditions say only whether there is one: of
    ``CASE WHEN shown THEN bought END`` that is ``bought`` alone.
    """
    return _named(_without_conditions(_parsed(connection, expression)), columns)


def _parsed(connection: duckdb.DuckDBPyConnection, expression: str) -> Any:
    query = f"SELECT json_serialize_sql({literal(f'SELECT {expression}')})"
    return json.loads(fetch_one(connection, query)[0])


def _named(node: Any, columns: Collection[str]) -> frozenset[str]:
    by_name = {name.lower(): name for name in columns}
    found: set[str] = set()
    for part in _nodes(node):
        if part.get("class") in _UNNAMED:
            return frozenset(columns)
        names = [name.lower() for name in part.get("column_names", [])]  # a.b: a field of a
        found |= set([by_name[name] for name in names if name in by_name][:1])
    return frozenset(found)


def _nodes(node: Any) -> list[dict[str, Any]]:
    """All objects of a tree of JSON."""
    if isinstance(node, list):
        return [found for part in node for found in _nodes(part)]
    if isinstance(node, dict):
        return [node, *(found for part in node.values() for found in _nodes(part))]
    return []


def _without_conditions(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_conditions(part) for part in node]
    if not isinstance(node, dict):
        return node
    if node.get("class") == "CASE":
        results = [check["then_expr"] for check in node["case_checks"]] + [node["else_expr"]]
        told = [result for result in results if not _is_null(result)]
        if len(told) == 1:
            return _without_conditions(told[0])
    return {key: _without_conditions(part) for key, part in node.items()}


def _is_null(node: dict[str, Any]) -> bool:
    value = node.get("literal") or node.get("value") or {}
    is_null = value.get("kind") == "NULL_LITERAL" or value.get("is_null") is True
    return node.get("class") == "CONSTANT" and is_null
