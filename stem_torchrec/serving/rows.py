"""Rows as callers have them -> Arrow tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from stem_torchrec.errors import UserError


def table_of(rows: Any, columns: Sequence[str]) -> pa.Table:
    """The named columns of a pyarrow.Table, a pandas frame, or a sequence of mappings.

    A column that a mapping lacks is null there; one that all lack is missing in the table.

    Raises:
        UserError: it is none of those, or a column's values are of several types; names it.
    """
    if isinstance(rows, pa.Table | pa.RecordBatch):
        table = rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows])
        return table.select([name for name in columns if name in table.column_names])
    if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):  # pandas is imported by nobody here
        wanted = [name for name in columns if name in rows.columns]
        arrays = {name: _array(name, rows[name], from_pandas=True) for name in wanted}
        return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(rows))})
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes):
        found = type(rows).__name__
        raise UserError(f"rows: a {found}; give a pyarrow.Table, a pandas frame or a list of dicts")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"rows: row {number} is a {type(row).__name__}, expected a mapping")
    if not rows:
        return pa.table({name: pa.nulls(0) for name in columns})
    arrays = {
        name: _array(name, [row.get(name) for row in rows])
        for name in columns
        if any(name in row for row in rows)
    }
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(rows))})


def unknown_columns(rows: Any, columns: Sequence[str]) -> list[str]:
    """Names that rows, which ``table_of`` has taken, have beside the columns."""
    if isinstance(rows, Sequence):
        found = dict.fromkeys(str(name) for row in rows[:1] for name in row)
    else:
        names: Any = rows.columns if hasattr(rows, "to_numpy") else rows.schema.names
        found = dict.fromkeys(map(str, names))
    return [name for name in found if name not in columns]


def _array(name: str, values: Any, **options: Any) -> pa.Array:
    try:
        return pa.array(values, **options)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"column {name!r}: its values are not of one type ({reason})") from None
