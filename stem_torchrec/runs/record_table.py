"""The records of a run as one table."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from stem_torchrec.runs.records import Record

FIRST = ("kind", "split", "step", "epoch")


def record_table(records: Sequence[Record]) -> pa.Table:
    """One row per record in their order, one column per figure.

    A figure that a record holds by task or other name has a column for each, ``auc/click``. What a
    record does not have is null. Lists are given as JSON.
    """
    rows = [dict(_figures(record)) for record in records]
    names = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _figures(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}/")
        else:
            yield prefix + name, json.dumps(value) if isinstance(value, list) else value


def _column(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # of more than one kind
        return pa.array([None if value is None else json.dumps(value) for value in values])
