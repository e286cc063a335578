"""Text of a description on its way into SQL: one expression over one row, and nothing else.

A description may come from a stranger. DuckDB's own parser says what a text is, in a connection of
its own that reaches no file; what passes is a pure function of the columns of one row.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import duckdb

from stem_torchrec.errors import UserError

_CLASSES = {
    *("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT"),
    *("FUNCTION", "LAMBDA", "LAMBDA_REF", "OPERATOR", "TYPE"),
}
"""Kinds of expressions, as DuckDB names them; a subquery, a star or a window is none of them."""

_LEFT_EMPTY = (
    *("modifiers", "where_clause", "group_expressions", "group_sets", "having", "sample"),
    "qualify",
)
_CLOCKS = {"current_timestamp", "current_time", "localtime", "localtimestamp"}
"""Names that DuckDB binds to functions of other names."""

_NOT_OF_THE_ROW = "it is no function of the row's values"


class SqlText:
    """Checks texts; holds a connection that reaches nothing, until it is closed."""

    def __init__(self) -> None:
        config: dict[str, str | bool | int | float | list[str]] = {
            "enable_external_access": False,
            "autoload_known_extensions": False,
            "autoinstall_known_extensions": False,
        }
        self._connection = duckdb.connect(":memory:", config=config)
        self._connection.execute("SET lock_configuration = true")
        self._functions = _functions(self._connection)

    def __enter__(self) -> "SqlText":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def require_expression(self, key: str, text: str, columns: Collection[str]) -> None:
        """Refuse what is not one expression over the columns of one row.

        Raises:
            UserError: names ``key``, the text and why.
        """
        known = {name.lower() for name in columns}
        if reason := self._refusal(self._parsed(key, text), known):
            raise UserError(f"{key}: {text!r} is not allowed: {reason}")

    def type_name(self, key: str, text: str) -> str:
        """DuckDB's own name of a type.

        Raises:
            UserError: the text is no type.
        """
        # The line break ends a comment.
        cast = f"TRY_CAST(NULL AS {text}\n)"
        try:
            [found] = self._selected(cast)
            if found["class"] == "CAST" and found["child"]["class"] == "CONSTANT":
                row = self._connection.execute(f"SELECT typeof({cast})").fetchone()
                assert row is not None
                return str(row[0])
        except (duckdb.Error, ValueError):
            pass
        raise UserError(f"{key}: {text!r} is no type of DuckDB, e.g. BIGINT, DOUBLE, VARCHAR")

    def _parsed(self, key: str, text: str) -> Mapping[str, Any]:
        try:
            # Without parentheses, so that the text cannot close them.
            selected = self._selected(text)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None
        if len(selected) != 1:
            raise UserError(f"{key}: {text!r} is not one expression")
        return selected[0]

    def _selected(self, text: str) -> list[Mapping[str, Any]]:
        """The expressions of ``SELECT text``; none if it is more than that.

        Raises:
            ValueError: it is no SQL.
        """
        query = ["SELECT " + text + "\n"]
        row = self._connection.execute("SELECT json_serialize_sql(?::VARCHAR)", query).fetchone()
        assert row is not None
        tree = json.loads(row[0])
        if tree["error"]:
            if tree["error_type"] == "not implemented":  # a statement that is no SELECT
                return []
            raise ValueError(tree["error_message"])
        nodes = [statement["node"] for statement in tree["statements"]]
        if len(nodes) != 1 or nodes[0]["type"] != "SELECT_NODE":
            return []
        node = nodes[0]
        is_bare = node["from_table"]["type"] == "EMPTY" and not node["cte_map"]["map"]
        return node["select_list"] if is_bare and not any(map(node.get, _LEFT_EMPTY)) else []

    def _refusal(self, expression: Mapping[str, Any], columns: Collection[str]) -> str:
        """Why an expression is refused; empty if it is not."""
        for part in _parts(expression):
            kind = part["class"]
            if kind not in _CLASSES:
                return f"{kind.lower().replace('_', ' ')} in an expression"
            name = _called(part, columns)
            if name is not None and (reason := self._refused_call(name, columns)):
                return f"{name}: {reason}"
        return ""

    def _refused_call(self, name: str, columns: Collection[str]) -> str:
        if name in self._functions.impure or name in _CLOCKS:
            return _NOT_OF_THE_ROW
        for definition in self._functions.macros.get(name, ()):
            if self._refusal(self._parsed(name, definition), columns):
                return _NOT_OF_THE_ROW
        return ""  # of a name that is none, whoever binds it to the columns knows more


class _Functions(NamedTuple):
    """DuckDB's functions by name.

    Attributes:
        impure: those that may read or change more than their arguments: table functions, what is
            not the same in each call, what tells of the session.
        macros: what others stand for. An aggregate is neither: DuckDB refuses it where it is bound
            to one row, and says so.
    """

    impure: frozenset[str]
    macros: dict[str, list[str]]


def _functions(connection: duckdb.DuckDBPyConnection) -> _Functions:
    found = connection.execute(
        """
        SELECT lower(function_name), function_type, stability, macro_definition
        FROM duckdb_functions()
        """
    ).fetchall()
    kinds = ("scalar", "aggregate")
    pure = {n for n, kind, stability, _ in found if kind in kinds and stability == "CONSISTENT"}
    impure = {n for n, kind, stability, _ in found if kind in kinds and stability != "CONSISTENT"}
    macros: dict[str, list[str]] = {}
    for name, kind, _, definition in found:
        if kind == "macro" and name not in pure | impure:
            macros.setdefault(name, []).append(definition)
    tables = {name for name, kind, *_ in found if kind not in (*kinds, "macro")}
    return _Functions(frozenset(impure | (tables - pure - macros.keys())), macros)


def _called(part: Mapping[str, Any], columns: Collection[str]) -> str | None:
    """The function that a part calls; a bare name that is no column may be one (current_date)."""
    if part["class"] == "FUNCTION":
        return str(part["function_name"]).lower()
    if part["class"] == "COLUMN_REF" and len(part["column_names"]) == 1:
        name = str(part["column_names"][0]).lower()
        return None if name in columns else name
    return None


def _parts(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All expressions within one, itself first; whatever has a class is one."""
    if isinstance(tree, Mapping):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _parts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _parts(value)
