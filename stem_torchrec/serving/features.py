"""Columns of ids and numbers -> what tables and network take.

B rows, N dense features, n ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as types
import torch
from torch import Tensor

from stem_torchrec.errors import UserError

_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ServedFeature:
    """A feature as ``export.json`` has it.

    Attributes:
        kind: ``id``, ``bag`` or ``dense``.
        table: whose table it is looked up in; empty for dense features.
        num_embeddings: rows of that table.
        is_mean: a bag's rows are averaged, not added up.
        dim: D, columns of that table of each owner.
    """

    name: str
    kind: str
    table: str = ""
    num_embeddings: int = 0
    is_mean: bool = False
    dim: int = 0


class Ids(NamedTuple):
    """A column's ids.

    Attributes:
        values: (n,) int64.
        lengths: (B,) int64, ids by row; None where each row has one.
    """

    values: Tensor
    lengths: Tensor | None

    def cut(self, start: int, stop: int) -> "Ids":
        """Those of rows ``start`` to ``stop - 1``."""
        if self.lengths is None:
            return Ids(self.values[start:stop], None)
        lengths = self.lengths[start:stop]
        before = int(self.lengths[:start].sum())
        return Ids(self.values[before : before + int(lengths.sum())], lengths)


class Inputs(NamedTuple):
    """B rows.

    Attributes:
        ids: by feature.
        dense: (B, N) float32.
    """

    ids: dict[str, Ids]
    dense: Tensor

    def cut(self, start: int, stop: int) -> "Inputs":
        """Rows ``start`` to ``stop - 1``, as far as there are some."""
        return Inputs(
            {name: ids.cut(start, stop) for name, ids in self.ids.items()}, self.dense[start:stop]
        )


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The rows of all parts, in order."""
    ids = {}
    for name in parts[0].ids:
        of_parts = [part.ids[name] for part in parts]
        lengths = [part.lengths for part in of_parts if part.lengths is not None]
        values = torch.cat([part.values for part in of_parts])
        ids[name] = Ids(values, torch.cat(lengths) if lengths else None)
    return Inputs(ids, torch.cat([part.dense for part in parts]))


def inputs_of(columns: pa.Table, features: Sequence[ServedFeature]) -> Inputs:
    """A prepared table's columns, checked: null ids are 0, null bags empty, null numbers 0.

    Raises:
        UserError: a column is missing or of another type, or holds an id that no table has or a
            number that is none; names it.
    """
    ids, dense = {}, []
    for feature in features:
        array = _column(columns, feature.name)
        if feature.kind == "dense":
            dense.append(_numbers(array, feature.name))
        elif feature.kind == "bag":
            ids[feature.name] = _bag(array, feature)
        else:
            ids[feature.name] = Ids(_ids(array, feature), None)
    size = (columns.num_rows, 0)
    return Inputs(ids, torch.stack(dense, dim=1) if dense else torch.zeros(size))


def _column(columns: pa.Table, name: str) -> pa.Array:
    if columns.column_names.count(name) != 1:
        what = "occurs twice" if name in columns.column_names else "is missing"
        raise UserError(f"column {name!r} {what}")
    column = columns.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _ids(array: pa.Array, feature: ServedFeature) -> Tensor:
    if not (types.is_integer(array.type) or types.is_null(array.type)):
        raise UserError(f"column {feature.name!r} has type {array.type}; ids are integers")
    values = torch.from_numpy(_filled(array, pa.int64()))
    if len(values):
        lowest, highest = int(values.min()), int(values.max())
        for value in (lowest, highest):
            if not 0 <= value < feature.num_embeddings:
                raise UserError(
                    f"feature {feature.name!r} has id {value}; allowed: 0 to "
                    f"{feature.num_embeddings - 1}"
                )
    return values


def _bag(array: pa.Array, feature: ServedFeature) -> Ids:
    if types.is_null(array.type):
        return Ids(torch.zeros(0, dtype=torch.int64), torch.zeros(len(array), dtype=torch.int64))
    if not (types.is_list(array.type) or types.is_large_list(array.type)):
        raise UserError(f"column {feature.name!r} has type {array.type}; a bag is a list of ids")
    lengths = array.value_lengths()
    return Ids(_ids(array.flatten(), feature), torch.from_numpy(_filled(lengths, pa.int64())))


def _numbers(array: pa.Array, name: str) -> Tensor:
    known = types.is_integer(array.type) or types.is_floating(array.type)
    if not (known or types.is_null(array.type)):
        raise UserError(f"column {name!r} has type {array.type}; a dense feature is a number")
    values = np.nan_to_num(_filled(array, pa.float64()), nan=0.0, posinf=np.inf, neginf=-np.inf)
    if (wrong := np.abs(values) > _FLOAT_MAX).any():
        raise UserError(f"dense feature {name!r} has value {values[wrong.argmax()]}; finite only")
    return torch.from_numpy(values.astype(np.float32))


def _filled(array: pa.Array, kind: pa.DataType) -> Any:
    """The values with 0 for nulls, as an array of their own."""
    try:
        return array.cast(kind).fill_null(0).to_numpy(zero_copy_only=False).copy()
    except pa.ArrowInvalid as error:
        raise UserError(f"a value is out of range: {error}") from None
