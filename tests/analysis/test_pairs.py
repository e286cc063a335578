"""Contradicting pairs by hand and by their properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stem_torchrec.analysis.pairs import (
    check_share,
    contradicting,
    distances,
    separation,
    summary,
)
from stem_torchrec.errors import UserError

two = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=40)
shares = st.floats(0.01, 0.5)


def test_distances_are_of_the_samples_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stem_torchrec.analysis.pairs._CHUNK", 2)
    users = np.array([[0, 0], [3, 4], [1, 1]], dtype=np.float32)
    items = np.array([[0, 0], [1, 1]], dtype=np.float32)
    found = distances(users, items, np.array([1, 2, 2, 0, 1]), np.array([0, 1, 0, 0, 1]))
    assert found == pytest.approx([5, 0, 2**0.5, 0, 13**0.5])


def test_contradicting_pairs_by_hand() -> None:
    a = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    b = np.array([9.0, 0, 8, 1, 7, 2, 3, 6, 5, 4])
    # Nearest 40 % by a: 0 to 3; farthest by b: values 6 to 9, of samples 0, 2, 4, 7.
    # Farthest by a: 6 to 9; nearest by b: values 0 to 3, of samples 1, 3, 5, 6.
    near_a, near_b = contradicting(a, b, 0.4)
    assert np.flatnonzero(near_a).tolist() == [0, 2]
    assert np.flatnonzero(near_b).tolist() == [6]


def test_equal_distances_are_in_or_out_together() -> None:
    a = np.array([1.0, 1, 1, 2, 3])
    b = np.array([9.0, 9, 9, 1, 0])
    assert contradicting(a, b, 0.5).near_a.tolist() == [True, True, True, False, False]
    # A fifth is one sample, but three are nearest by a alike: none is.
    assert not contradicting(a, b, 0.2).near_a.any()
    same = np.ones(5)
    assert not contradicting(same, same, 0.5).near_a.any()
    # Values that are all alike have no nearer half, whatever the other task says.
    assert not contradicting(same, a, 0.5).near_a.any()
    assert not contradicting(a, same, 0.5).near_b.any()


@given(two, shares)
def test_swapping_the_tasks_swaps_the_directions(
    values: list[tuple[int, int]], share: float
) -> None:
    a, b = np.array(values, dtype=np.float64).T
    found, swapped = contradicting(a, b, share), contradicting(b, a, share)
    assert (found.near_a == swapped.near_b).all()
    assert (found.near_b == swapped.near_a).all()
    assert not (found.near_a & found.near_b).any()


@given(st.permutations(range(17)), shares)
def test_opposite_orders_contradict_at_both_ends(values: list[int], share: float) -> None:
    distance = np.array(values, dtype=np.float64)
    near_a, near_b = contradicting(distance, -distance, share)
    assert near_a.sum() == near_b.sum() == pytest.approx(share * 17, abs=0.5 + 1e-9)
    assert not contradicting(distance, distance, share).near_a.any()


def test_summary_by_hand() -> None:
    assert summary(np.array([1.0, 2, 3, 4, 10])) == pytest.approx((5, 4, 10**0.5, 2, 3, 4))
    assert summary(np.zeros(0)) == (0, None, None, None, None, None)


def test_separation_by_hand() -> None:
    low, high = np.array([1.0, 2]), np.array([3.0, 4])
    assert separation(low, high) == 1
    assert separation(high, low) == 0
    assert separation(low, low) == 0.5
    assert separation(low, np.zeros(0)) is None


@pytest.mark.parametrize("share", [0.0, -0.1, 0.51, float("nan")])
def test_bad_share(share: float) -> None:
    with pytest.raises(UserError, match=rf"--share: {share}; allowed: above 0, at most 0\.5"):
        check_share(share)
