"""In which order an epoch visits the rows of a split, and which rank takes which of them.

An epoch is one sequence of N positions that depends on the seed and the epoch only. Ranks take
intervals of it. Nothing here reads data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    """The part of a window that an interval of the sequence covers.

    Attributes:
        window: the window to read.
        rows: positions relative to the window's start.
    """

    window: Window
    rows: Interval


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
        self._shuffle = shuffle
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

    def pieces(self, interval: Interval) -> Iterator[Piece]:
        """The windows that ``interval`` overlaps, with the part of each, in order."""
        for window in self.windows:
            start = max(interval.start, window.interval.start)
            stop = min(interval.stop, window.interval.stop)
            if start < stop:
                origin = window.interval.start
                yield Piece(window, Interval(start - origin, stop - origin))

    def row_order(self, piece: Piece) -> NDArray[np.int64] | None:
        """Rows of the window's stacked row groups in the order of the piece's positions.

        None if not shuffled: they are then ``piece.rows`` as they stand.
        """
        if not self._shuffle:
            return None
        generator = self._generator(1 + piece.window.index)
        return generator.permutation(piece.window.interval.size)[slice(*piece.rows)]

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence((*self._entropy, stream)))
        )


def share(num_rows: int, rank: int, world_size: int) -> Interval:
    """The rank's part of ``num_rows`` positions; sizes of ranks differ by at most one."""
    return Interval(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)


def steps_per_epoch(num_rows: int, world_size: int, batch_size: int) -> int:
    """Steps that the largest share takes, which every rank makes."""
    largest = -(-num_rows // world_size)
    return -(-largest // batch_size)


def rows_per_rank(num_rows: int, world_size: int, batch_size: int, step: int) -> int:
    """Rows of every rank's batch in one step, counted from 0: those of the largest share."""
    return min(-(-num_rows // world_size) - step * batch_size, batch_size)


def samples_in_step(num_rows: int, world_size: int, batch_size: int, step: int) -> int:
    """Real rows of all ranks in one step, counted from 0."""
    size, num_larger = divmod(num_rows, world_size)

    def rows(share_size: int) -> int:
        return min(max(share_size - step * batch_size, 0), batch_size)

    return num_larger * rows(size + 1) + (world_size - num_larger) * rows(size)
