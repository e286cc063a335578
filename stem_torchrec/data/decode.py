"""Arrow tables of row groups -> checked columns in memory.

R rows of all row groups together.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from numpy.typing import NDArray

from stem_torchrec.data.columns import Bag, Columns, concatenate_bags, empty, joined, offsets_of
from stem_torchrec.data.manifest import ColumnUse, check_ids, column_uses
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.errors import UserError

NO_GROUP = -1
"""Group of a row whose group is null."""


_ROLES = ("id", "dense", "label", "sample_weight", "group", "bag")
"""In the order of ``Columns``."""


def uses_in_order(schema: Schema) -> list[ColumnUse]:
    """The columns that a schema reads, scalars first, as ``Columns`` has them."""
    return sorted(column_uses(schema), key=lambda use: _ROLES.index(use.role))


def decode(
    parts: Iterable[tuple[object, pa.Table]], num_rows: int, uses: Sequence[ColumnUse]
) -> Columns:
    """Stack the row groups' tables, of ``num_rows`` rows together, and check every value.

    A table may hold a part of its row group's rows; what it comes from, a ``RowGroup`` or another
    place, is for messages. ``uses`` are in the order of ``uses_in_order``, some or all of them.

    A null id is id 0, a null bag is empty, a null inside a bag is id 0, a null or NaN dense value
    is 0.0, a null or NaN label is NaN, a null group is -1.

    Raises:
        UserError: an id outside its table, a label other than 0 and 1, an infinite dense value or
            a weight that is missing, negative or infinite; names column, file, row group, value.
    """
    scalars = [(use, empty(num_rows, _dtype(use))) for use in uses if use.role != "bag"]
    bags: list[tuple[Feature, list[Bag]]] = [
        (use.feature, []) for use in uses if use.role == "bag" and use.feature is not None
    ]
    start = 0
    for group, table in parts:
        rows = slice(start, start + table.num_rows)
        for use, column in scalars:
            _fill(_array(table, use.column), use, str(group), column[rows])
        for feature, pieces in bags:
            pieces.append(_bag(_array(table, feature.name), feature, str(group)))
        start = rows.stop
    assert start == num_rows
    joined_bags = []
    while bags:  # each feature's pieces go before the next ones are joined
        feature, pieces = bags.pop(0)
        joined_bags.append(concatenate_bags(pieces, _id_dtype(feature)))
    return Columns(num_rows, [column for _, column in scalars], joined_bags)


def _dtype(use: ColumnUse) -> type[np.generic]:
    if use.role == "group":
        return np.int64
    return np.float32 if use.feature is None or use.role == "dense" else _id_dtype(use.feature)


def _id_dtype(feature: Feature) -> type[np.generic]:
    # Half the memory to permute, wherever the table is small enough.
    return np.int32 if (feature.num_embeddings or 0) <= 2**31 else np.int64


def check_values(table: pa.Table, use: ColumnUse, where: str) -> NDArray:
    """Check one column's values as ``decode`` does; returns them (R,), of a bag the flat ids.

    Raises:
        UserError: as ``decode``.
    """
    array = _array(table, use.column)
    if use.role == "bag":
        assert use.feature is not None
        return _bag(array, use.feature, where).flat
    out = empty(len(array), np.int64 if use.role in ("id", "group") else np.float32)
    _fill(array, use, where, out)
    return out


def _fill(array: pa.Array, use: ColumnUse, where: str, out: NDArray) -> None:
    """Check a scalar column and write its values."""
    if use.role == "id":
        assert use.feature is not None
        out[:] = _ids(array, use.feature, where)
    elif use.role == "group":
        out[:] = _group(array)
    elif use.role == "dense":
        _dense(array, f"{where}: dense feature {use.column!r}", out)
    elif use.role == "label":
        _label(array, f"{where}: label column {use.column!r}", out)
    else:
        _weight(array, f"{where}: sample_weight column {use.column!r}", out)


def decode_label(table: pa.Table, column: str, where: str, out: NDArray[np.float32]) -> None:
    """Fill ``out`` with a label column: 0, 1 or NaN for null.

    Raises:
        UserError: it holds another value.
    """
    _fill(_array(table, column), ColumnUse(column, "label"), where, out)


def _array(table: pa.Table, column: str) -> pa.Array:
    chunks = table.column(column).chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _filled(array: pa.Array) -> NDArray[np.integer]:
    """The values with 0 for nulls."""
    # Arrow copies even where nothing is to be filled.
    return (array.fill_null(0) if array.null_count else array).to_numpy()


def _group(array: pa.Array) -> NDArray[np.int64]:
    values = _filled(array).astype(np.int64)
    if array.null_count:
        values[_is_null(array)] = NO_GROUP
    return values


def _is_null(array: pa.Array) -> NDArray[np.bool_]:
    return array.is_null().to_numpy(zero_copy_only=False)


def _ids(array: pa.Array, feature: Feature, where: str) -> NDArray[np.integer]:
    values = _filled(array)
    if len(values):
        check_ids(feature, int(values.min()), int(values.max()), where)
    return values


def _bag(array: pa.Array, feature: Feature, where: str) -> Bag:
    if types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size, np.int64)
    else:
        lengths = np.diff(array.offsets.to_numpy())
    if array.null_count:
        # flatten(), too, leaves out what lies under a null list.
        lengths = np.where(_is_null(array), 0, lengths)
    # A copy as narrow as it can be: a window of wide ids would hold several times its size.
    values = joined([_ids(array.flatten(), feature, where)], _id_dtype(feature))
    bag = Bag(offsets_of(lengths), values)
    assert len(values) == bag.offsets[-1]
    return bag


def _numbers(array: pa.Array) -> NDArray:
    """The values with NaN for nulls; keeps a dtype that needs no such change."""
    if types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.to_numpy(zero_copy_only=False)


def _dense(array: pa.Array, what: str, out: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore"):
        out[:] = _numbers(array)
    if np.isfinite(out).all():
        return
    out[np.isnan(out)] = 0.0
    _refuse(np.isinf(out), out, what, "finite numbers of 32 bits, null")


def _label(array: pa.Array, what: str, out: NDArray[np.float32]) -> None:
    values = _numbers(array)
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        wrong &= ~np.isnan(values)
        _refuse(wrong, values, what, "0, 1, null")
    out[:] = values


def _weight(array: pa.Array, what: str, out: NDArray[np.float32]) -> None:
    with np.errstate(over="ignore"):
        out[:] = _numbers(array)
    _refuse(~(np.isfinite(out) & (out >= 0)), out, what, "finite numbers >= 0, not null")


def _refuse(wrong: NDArray[np.bool_], values: NDArray, what: str, allowed: str) -> None:
    if wrong.any():
        raise UserError(f"{what} has value {values[wrong.argmax()]}; allowed: {allowed}")
