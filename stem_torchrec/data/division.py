"""Who reads which rows of an epoch in which step.

W ranks, B rows per step and rank, N rows to be read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stem_torchrec.data.shares import Interval


@dataclass(frozen=True)
class Division:
    """Intervals of an epoch's sequence, divided among ranks that all make the same steps.

    The positions of all intervals are counted through; every rank takes a contiguous share of
    them, in steps of ``batch_size``. Shares differ by at most one row. A whole epoch is one
    interval; what is left of one is as many as there were ranks.

    Attributes:
        intervals: ascending, disjoint, not empty.
        world_size: W.
        batch_size: B.
    """

    intervals: tuple[Interval, ...]
    world_size: int
    batch_size: int

    @cached_property
    def num_rows(self) -> int:
        """N."""
        return sum(interval.size for interval in self.intervals)

    @property
    def steps(self) -> int:
        """Steps that the largest share takes, which every rank makes."""
        return -(-self._largest // self.batch_size)

    def share(self, rank: int, first_step: int = 0) -> tuple[Interval, ...]:
        """What the rank reads from step ``first_step`` on, counted from 0."""
        start, stop = self._counted(rank)
        start = min(start + first_step * self.batch_size, stop)
        return tuple(_select(self.intervals, Interval(start, stop)))

    def left_after(self, steps: int) -> tuple[Interval, ...]:
        """What all ranks have still to read after the first ``steps``."""
        ranks = range(self.world_size)
        return tuple(_merged(part for rank in ranks for part in self.share(rank, steps)))

    def rows_per_rank(self, step: int) -> int:
        """Rows of every rank's batch in one step, counted from 0: those of the largest share."""
        return min(self._largest - step * self.batch_size, self.batch_size)

    def samples_in_step(self, step: int) -> int:
        """Real rows of all ranks in one step, counted from 0."""
        size, num_larger = divmod(self.num_rows, self.world_size)

        def rows(share_size: int) -> int:
            return min(max(share_size - step * self.batch_size, 0), self.batch_size)

        return num_larger * rows(size + 1) + (self.world_size - num_larger) * rows(size)

    @property
    def _largest(self) -> int:
        return -(-self.num_rows // self.world_size)

    def _counted(self, rank: int) -> Interval:
        return Interval(
            rank * self.num_rows // self.world_size, (rank + 1) * self.num_rows // self.world_size
        )


def whole(num_rows: int, world_size: int, batch_size: int) -> Division:
    """All of an epoch's rows."""
    return Division((Interval(0, num_rows),), world_size, batch_size)


def _select(intervals: Sequence[Interval], counted: Interval) -> Iterable[Interval]:
    """The positions ``counted`` through the intervals one after the other."""
    before = 0
    for start, stop in intervals:
        first = start + max(counted.start - before, 0)
        last = min(start + counted.stop - before, stop)
        if first < last:
            yield Interval(first, last)
        before += stop - start


def _merged(intervals: Iterable[Interval]) -> Iterable[Interval]:
    """Neighbours without a gap as one."""
    pending: Interval | None = None
    for interval in intervals:
        if pending is not None and pending.stop == interval.start:
            pending = Interval(pending.start, interval.stop)
            continue
        if pending is not None:
            yield pending
        pending = interval
    if pending is not None:
        yield pending
