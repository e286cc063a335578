"""Shares and steps of any intervals on any number of ranks, and what is left of them."""

from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.data.division import Division, whole
from stem_torchrec.data.position import ReadPosition, position_from
from stem_torchrec.data.shares import Interval

shapes = st.tuples(st.integers(1, 20), st.integers(1, 40))


def rows_of(intervals):
    return [row for interval in intervals for row in range(*interval)]


@st.composite
def divisions(draw):
    edges = sorted(draw(st.sets(st.integers(0, 200), min_size=2, max_size=12)))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    return Division(tuple(Interval(*pair) for pair in pairs), *draw(shapes))


@given(divisions())
def test_shares_steps_and_samples(division):
    shares = [division.share(rank) for rank in range(division.world_size)]
    assert rows_of(chain.from_iterable(shares)) == rows_of(division.intervals)
    sizes = [len(rows_of(share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert division.steps == -(-max(sizes) // division.batch_size)
    for step in range(division.steps):
        parts = [
            rows_of(share)[step * division.batch_size :][: division.batch_size] for share in shares
        ]
        assert division.samples_in_step(step) == sum(map(len, parts)) > 0
        assert division.rows_per_rank(step) == max(map(len, parts))


@given(divisions(), st.integers(0, 60))
def test_what_is_left_is_what_the_steps_have_not_taken(division, steps):
    left = division.left_after(steps)
    expected = []
    for rank in range(division.world_size):
        rows = rows_of(division.share(rank))
        assert rows_of(division.share(rank, steps)) == rows[steps * division.batch_size :]
        expected += rows[steps * division.batch_size :]
    assert rows_of(left) == expected
    assert all(a.stop < b.start for a, b in pairwise(left))
    assert all(interval.size > 0 for interval in left)


@given(num_rows=st.integers(1, 200), phases=st.lists(st.tuples(shapes, st.integers(1, 9))))
def test_interruptions_compose(num_rows, phases):
    position = ReadPosition(4, 0, whole(num_rows, 1, 1), "order", "files")
    seen = []
    for (world_size, batch_size), steps in phases:
        position = position.reshaped(world_size, batch_size)
        steps = min(steps, position.steps_left - 1)
        for _ in range(steps):
            for rank in range(world_size):
                rows = rows_of(position.division.share(rank, position.step))
                seen += rows[:batch_size]
            position = ReadPosition(4, position.step + 1, position.division, "order", "files")
        assert position_from(position.state_dict()) == position
        assert position.is_start == (not seen)
    left = rows_of(position.division.left_after(position.step))
    assert sorted(seen + left) == list(range(num_rows))


def test_the_same_shape_is_the_same_position():
    position = ReadPosition(0, 3, whole(100, 2, 10), "order", "files")
    assert position.reshaped(2, 10) is position
    other = position.reshaped(1, 10)
    assert other.division == Division((Interval(30, 50), Interval(80, 100)), 1, 10)
    assert other.step == 0


@pytest.mark.parametrize(("num_rows", "world_size"), [(3, 5), (1, 1), (1, 8)])
def test_fewer_rows_than_ranks_are_one_step(num_rows, world_size):
    division = whole(num_rows, world_size, 4)
    assert division.steps == 1
    assert division.samples_in_step(0) == num_rows
    assert division.rows_per_rank(0) == 1
