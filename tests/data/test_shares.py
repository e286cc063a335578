"""The order of an epoch, without data."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.data.shares import EpochSequence, Interval

group_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def positions(sizes, *intervals, **options):
    """File positions of the rows that intervals of the sequence visit."""
    starts = np.cumsum([0, *sizes])
    sequence = EpochSequence(sizes, **options)
    visited: list[int] = []
    for piece in sequence.pieces(intervals):
        stacked = np.concatenate(
            [np.arange(starts[group], starts[group + 1]) for group in piece.window.row_groups]
        )
        order = sequence.row_order(piece)
        if order is None:
            order = np.concatenate([np.arange(*rows) for rows in piece.rows])
        visited += stacked[order].tolist()
    return visited


@given(
    sizes=group_sizes,
    shuffle=st.booleans(),
    width=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 72), max_size=5),
)
def test_any_cut_of_the_sequence_gives_the_same_order(sizes, shuffle, width, cuts):
    options = {"epoch": 3, "seed": 5, "shuffle": shuffle, "row_groups_per_window": width}
    num_rows = sum(sizes)
    whole = positions(sizes, Interval(0, num_rows), **options)
    assert sorted(whole) == list(range(num_rows))
    if not shuffle:
        assert whole == list(range(num_rows))
    edges = [0, *sorted(min(cut, num_rows) for cut in cuts), num_rows]
    parts = [positions(sizes, Interval(*edge), **options) for edge in pairwise(edges)]
    assert list(chain.from_iterable(parts)) == whole
    intervals = [Interval(*edge) for edge in pairwise(edges)]
    assert positions(sizes, *intervals, **options) == whole
    assert positions(sizes, *intervals[::2], **options) == [*chain.from_iterable(parts[::2])]


def test_a_window_with_several_intervals_comes_once():
    sequence = EpochSequence([9, 9], epoch=0)
    intervals = [Interval(0, 2), Interval(4, 5), Interval(8, 10), Interval(12, 13)]
    first, second = sequence.pieces(intervals)
    assert first.rows == ((0, 2), (4, 5), (8, 9))
    assert second.rows == ((0, 1), (3, 4))


def test_order_depends_on_seed_and_epoch_only():
    sizes = [20] * 6

    def order(seed, epoch):
        options = {"seed": seed, "epoch": epoch, "shuffle": True, "row_groups_per_window": 2}
        return positions(sizes, Interval(0, 120), **options)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_shuffling_permutes_row_groups_and_the_rows_of_a_window_together():
    options = {"epoch": 0, "seed": 0, "shuffle": True, "row_groups_per_window": 2}
    order = np.array(positions([50] * 8, Interval(0, 400), **options)) // 50
    windows = [set(order[start : start + 100].tolist()) for start in range(0, 400, 100)]
    assert [len(groups) for groups in windows] == [2] * 4
    assert windows != [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert all(np.count_nonzero(np.diff(order[s : s + 100])) > 20 for s in range(0, 400, 100))


def test_windows_of_an_epoch_are_permuted_differently():
    sequence = EpochSequence([64, 64], epoch=0, shuffle=True)
    first, second = (sequence.row_order(piece) for piece in sequence.pieces([Interval(0, 128)]))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("interval", [Interval(0, 0), Interval(4, 4)])
def test_an_empty_share_reads_no_window(interval):
    assert list(EpochSequence([4, 4], epoch=0).pieces([interval])) == []
