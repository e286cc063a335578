"""In which order an epoch visits the rows of a split, and which rank takes which of them.

An epoch is one sequence of N positions that depends on the seed and the epoch only. Ranks take
intervals of it (``division.py``). Nothing here reads data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """Positions ``start`` to ``stop - 1``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Window:
    """Row groups that lie side by side in the epoch's sequence and are permuted together.

    Attributes:
        index: place among the epoch's windows.
        row_groups: indices into the manifest, in the order in which their rows are stacked.
        interval: positions that the window's rows take in the epoch's sequence.
    """

    index: int
    row_groups: tuple[int, ...]
    interval: Interval


class Piece(NamedTuple):
    """The part of a window that some intervals of the sequence cover.

    Attributes:
        window: the window to read.
        rows: positions relative to the window's start, ascending; at least one interval.
    """

    window: Window
    rows: tuple[Interval, ...]


class EpochSequence:
    """The order of one epoch's rows, the same on any number of ranks.

    With ``shuffle`` the row groups are permuted, then the rows of every ``row_groups_per_window``
    consecutive ones. Without it the rows come in file order, one row group to a window.

    Args:
        group_sizes: rows of each row group in file order.
        seed: non-negative; with ``epoch`` the only source of the order.
    """

    def __init__(
        self,
        group_sizes: Sequence[int],
        *,
        epoch: int,
        seed: int = 0,
        shuffle: bool = False,
        row_groups_per_window: int = 1,
    ) -> None:
        self._entropy = (seed, epoch)
        self.shuffle = shuffle
        order = np.arange(len(group_sizes))
        if shuffle:
            order = self._generator(0).permutation(order)
        width = row_groups_per_window if shuffle else 1
        self.windows: list[Window] = []
        start = 0
        for first in range(0, len(order), width):
            groups = tuple(order[first : first + width].tolist())
            stop = start + sum(group_sizes[group] for group in groups)
            self.windows.append(Window(len(self.windows), groups, Interval(start, stop)))
            start = stop

    def pieces(self, intervals: Sequence[Interval]) -> Iterator[Piece]:
        """The windows that the ascending ``intervals`` overlap, with the parts of each, in order.

        A window comes once, however many intervals lie in it.
        """
        first = 0
        for window in self.windows:
            origin, end = window.interval
            while first < len(intervals) and intervals[first].stop <= origin:
                first += 1
            rows = []
            for start, stop in islice(intervals, first, None):
                if start >= end:
                    break
                rows.append(Interval(max(start, origin) - origin, min(stop, end) - origin))
            if rows := [part for part in rows if part.size > 0]:
                yield Piece(window, tuple(rows))

    def row_order(self, piece: Piece) -> NDArray[np.int64] | None:
        """Rows of the window's stacked row groups in the order of the piece's positions.

        None if not shuffled: they are then ``piece.rows`` as they stand.
        """
        if not self.shuffle:
            return None
        generator = self._generator(1 + piece.window.index)
        order = generator.permutation(piece.window.interval.size)
        return np.concatenate([order[slice(*part)] for part in piece.rows])

    def draws(self, piece: Piece, num: int) -> NDArray[np.float32]:
        """``num`` uniform numbers in [0, 1) for each row: (num, R).

        Of the rows that ``row_order`` names; of all rows of the window if not shuffled.
        """
        generator = self._generator(1 + len(self.windows) + piece.window.index)
        draws = generator.random((num, piece.window.interval.size), np.float32)
        if not self.shuffle:
            return draws
        return np.concatenate([draws[:, slice(*part)] for part in piece.rows], axis=1)

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence((*self._entropy, stream)))
        )
