"""Decoded rows in memory, column by column.

R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# Rows of a bag gathered at once: the positions of their ids stay in the cache.
_GATHER_ROWS = 4096


def empty(size: int, dtype: type[np.generic]) -> NDArray:
    """An array from Arrow's allocator, which keeps freed pages at hand.

    numpy's gives them back to the system, and faulting them in again costs more than the copy.
    """
    return np.frombuffer(pa.allocate_buffer(size * np.dtype(dtype).itemsize), dtype)


def joined(parts: Sequence[NDArray], dtype: type[np.generic]) -> NDArray:
    """All parts one after the other, cast to ``dtype``, which must hold their values."""
    out = empty(sum(len(part) for part in parts), dtype)
    return np.concatenate(parts, out=out, casting="unsafe")


@dataclass(frozen=True)
class Bag:
    """A column of lists.

    Attributes:
        offsets: (R + 1,) int64; row r is ``values[offsets[r] : offsets[r + 1]]``. The first need
            not be 0, so that a slice of rows shares its values.
        values: ids, of any integer type that holds them.
    """

    offsets: NDArray[np.int64]
    values: NDArray[np.integer]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def flat(self) -> NDArray[np.integer]:
        """Ids of all rows, one after the other."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    def take(self, rows: NDArray[np.int64]) -> "Bag":
        """The rows named, in that order."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        if len(rows) and (width := int(lengths[0])) and (self.lengths == width).all():
            # Whole rows are copied at once: an order of magnitude faster than id by id.
            table = self.flat.reshape(-1, width)
            return Bag(offsets_of(lengths), _taken(table, rows).reshape(-1))
        offsets = offsets_of(lengths)
        values = empty(int(offsets[-1]), self.values.dtype.type)
        for first in range(0, len(rows), _GATHER_ROWS):
            part = slice(first, first + _GATHER_ROWS)
            stop = min(part.stop, len(rows))
            positions = np.repeat(starts[part] - offsets[first:stop], lengths[part])
            positions += np.arange(offsets[first], offsets[stop])
            out = values[offsets[first] : offsets[stop]]
            np.take(self.values, positions, out=out, mode="clip")
        return Bag(offsets, values)


@dataclass
class Columns:
    """R rows of the columns that a schema reads.

    Attributes:
        num_rows: R.
        scalars: (R,) arrays: int32 or int64 id features in schema order; float32 dense features,
            labels and, if there is one, the weight; the int64 group if there is one.
        bags: bag features in schema order.
    """

    num_rows: int
    scalars: list[NDArray]
    bags: list[Bag]

    def cut(self, start: int, stop: int) -> "Columns":
        """Rows ``start`` to ``stop - 1``, in the same memory."""
        return Columns(
            stop - start,
            [column[start:stop] for column in self.scalars],
            [Bag(bag.offsets[start : stop + 1], bag.values) for bag in self.bags],
        )

    def select(self, rows: NDArray[np.int64]) -> None:
        """Keep the rows named, each of which must exist, in that order.

        Done in place, so that no more than one column is ever held twice. That the rows exist is
        not looked at again: a check for every column costs more than the copy of some.
        """
        self.num_rows = len(rows)
        for index, column in enumerate(self.scalars):
            self.scalars[index] = _taken(column, rows)
        for index, bag in enumerate(self.bags):
            self.bags[index] = bag.take(rows)


def side_by_side(parts: Sequence[Columns]) -> Columns:
    """The columns of all parts, which have the same rows."""
    return Columns(
        parts[0].num_rows,
        [column for part in parts for column in part.scalars],
        [bag for part in parts for bag in part.bags],
    )


def concatenate(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    scalars = zip(*(part.scalars for part in parts), strict=True)
    bags = zip(*(part.bags for part in parts), strict=True)
    return Columns(
        sum(part.num_rows for part in parts),
        [np.concatenate(column) for column in scalars],
        [concatenate_bags(column) for column in bags],
    )


def concatenate_bags(parts: Sequence[Bag], dtype: type[np.generic] | None = None) -> Bag:
    """The rows of all parts, in order; values are cast to ``dtype``, which must hold them."""
    if len(parts) == 1 and parts[0].values.dtype == (dtype or parts[0].values.dtype):
        return parts[0]
    lengths = np.concatenate([part.lengths for part in parts])
    flat = [part.flat for part in parts]
    return Bag(offsets_of(lengths), joined(flat, dtype or flat[0].dtype.type))


def offsets_of(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """(R,) lengths -> (R + 1,) offsets."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _taken(column: NDArray, rows: NDArray[np.int64]) -> NDArray:
    shape = (len(rows), *column.shape[1:])
    out = empty(math.prod(shape), column.dtype.type).reshape(shape)
    # All rows exist; "clip" spares numpy a check of each.
    return np.take(column, rows, axis=0, out=out, mode="clip")
