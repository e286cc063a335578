"""Side tables beside raw rows: a row of its own table for each key, joined as further columns.

Rows keep their number and their order: a key has one row of the table at most, and a row whose key
has none is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.prepare.encoder.definition import text_column
from stem_torchrec.prepare.engine.sql import literal, quoted

_NUMBER = quoted("\x01row")


@dataclass(frozen=True)
class Side:
    """A side table that is ready to be joined.

    Attributes:
        keys: columns of the rows -> columns of the table.
        columns: names beside the rows' columns -> columns of the table.
        types: DuckDB's types by name beside the rows' columns.
        found_types: names whose type was found in the first rows.
        relation: what stands behind FROM; a table of delimited files has texts, too.
        may_miss: a key without a row is no fault.
        shown: its files, for messages.
    """

    name: str
    keys: Mapping[str, str]
    columns: Mapping[str, str]
    types: Mapping[str, str]
    found_types: frozenset[str]
    relation: str
    has_texts: bool
    may_miss: bool
    shown: str

    @property
    def matched(self) -> str:
        """SQL that is true for a row whose key has a row in the table."""
        return quoted(f"\x01tables.{self.name}")

    @property
    def fault(self) -> tuple[str, str]:
        """SQL that is true for a row without one, where it must not miss, and what is said."""
        parts = [
            f"{literal(f'{key} ')}, coalesce(left({quoted(key)}::VARCHAR, 80), 'nothing')"
            for key in self.keys
        ]
        said = f" has no row in {self.shown}; missing: allow takes its columns as missing"
        text = ", ', ', ".join(parts)
        return f"NOT {self.matched}", (
            f"concat({literal(f'tables.{self.name}: ')}, {text}, {literal(said)})"
        )


def joined_sql(rows: str, sides: Sequence[Side]) -> str:
    """What stands behind FROM: rows with the columns of their side tables, in their order.

    A join keeps no order, so rows are numbered before it and sorted by that after it.
    """
    selected, joins = [f"own.* EXCLUDE ({_NUMBER})"], []
    for number, side in enumerate(sides):
        table = f"side_{number}"
        first = next(iter(side.keys.values()))
        selected.append(f"{table}.{quoted(first)} IS NOT NULL AS {side.matched}")
        for name, column in side.columns.items():
            selected.append(f"{table}.{quoted(column)} AS {quoted(name)}")
            if side.has_texts:
                text = quoted(text_column(column))
                selected.append(f"{table}.{text} AS {quoted(text_column(name))}")
        equal = [f"own.{quoted(a)} = {table}.{quoted(b)}" for a, b in side.keys.items()]
        joins.append(f"LEFT JOIN {side.relation} {table} ON {' AND '.join(equal)}")
    numbered = f"(SELECT *, row_number() OVER () AS {_NUMBER} FROM {rows})"
    return (
        f"(SELECT {', '.join(selected)} FROM {numbered} own {' '.join(joins)} "
        f"ORDER BY own.{_NUMBER})"
    )
