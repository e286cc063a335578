"""Buckets and subsets by hand, by their properties, and scores against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from stem_torchrec.analysis.subsets import (
    ALL,
    SUBSETS,
    Buckets,
    Floats,
    Score,
    buckets_of,
    gains,
    scores_of,
    sizes_of,
    subsets_of,
    title,
)
from stem_torchrec.errors import UserError
from stem_torchrec.training.evaluation import Joined

TASKS = ("click", "like")
columns = st.lists(st.integers(-5, 5), min_size=1, max_size=60)
pairs = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=60)


def array(values: object) -> Floats:
    return np.array(values, dtype=np.float64)


def some_samples(seed: int = 0, rows: int = 400) -> Joined:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (rows, 2)).astype(np.float64)
    weights = rng.random((rows, 2)) * (rng.random((rows, 2)) < 0.8)
    return Joined(rng.standard_normal((rows, 2)), labels, weights, None)


def test_buckets_by_hand() -> None:
    assert buckets_of(array([0.3, 0.1, 0.2, 0.4]), 2).tolist() == [1, 0, 0, 1]
    # Seven in three buckets; equal scores are parted in the order of the samples.
    assert buckets_of(array([5, 5, 5, 5, 5, 5, 5]), 3).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert buckets_of(array([2, 1, 2, 1]), 4).tolist() == [2, 0, 3, 1]


def test_subsets_by_hand() -> None:
    ordered = np.arange(10.0)
    # Ten samples, ten buckets: a sample's score is its bucket. Differences -9, -7, ..., 7, 9.
    expected = np.stack([ordered, ordered[::-1]], axis=1)
    found = [SUBSETS[i] for i in subsets_of(expected, Buckets(10, 3))]
    assert found == ["B"] * 3 + ["comparable"] * 4 + ["A"] * 3
    # The bound itself is comparable on both sides; 7 and 8 are on either side of |d| = 7.
    assert subsets_of(expected, Buckets(10, 7)).tolist() == [2, *[1] * 8, 0]
    assert subsets_of(expected, Buckets(10, 0)).tolist() == [2] * 5 + [0] * 5
    assert subsets_of(np.stack([ordered, ordered], axis=1), Buckets(10, 0)).tolist() == [1] * 10


@given(columns, st.integers(2, 12))
def test_buckets_are_of_equal_size_and_keep_the_order(scores: list[int], count: int) -> None:
    buckets = buckets_of(array(scores), count)
    sizes = np.bincount(buckets, minlength=count)
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1
    order = np.argsort(scores, kind="stable")
    assert (np.diff(buckets[order]) >= 0).all()


@given(pairs, st.integers(2, 12), st.data())
def test_swapping_the_tasks_swaps_the_subsets(
    scores: list[tuple[int, int]], count: int, data: st.DataObject
) -> None:
    buckets = Buckets(count, data.draw(st.integers(0, count - 2)))
    found = subsets_of(array(scores), buckets)
    assert set(found.tolist()) <= {0, 1, 2}
    assert (subsets_of(array(scores)[:, ::-1], buckets) == 2 - found).all()


@given(pairs, st.integers(2, 12))
def test_every_sample_is_in_one_subset(scores: list[tuple[int, int]], count: int) -> None:
    expected = array(scores)
    samples = Joined(expected, np.ones_like(expected), np.ones_like(expected), None)
    sizes = sizes_of(samples, subsets_of(expected, Buckets(count, 0)))
    assert sizes[ALL].samples == sum(sizes[name].samples for name in SUBSETS) == len(scores)
    assert sum(sizes[name].share for name in SUBSETS) == pytest.approx(1)


def test_scores_and_sizes_are_scikit_learns() -> None:
    samples = some_samples()
    subsets = subsets_of(some_samples(1).logits, Buckets(10, 3))
    scores, sizes = scores_of(TASKS, samples, subsets), sizes_of(samples, subsets)
    for name in (ALL, *SUBSETS):
        own = np.ones(400, dtype=bool) if name == ALL else subsets == SUBSETS.index(name)
        assert sizes[name].samples == own.sum() > 0
        assert sizes[name].share == own.sum() / 400
        for index, task in enumerate(TASKS):
            seen = own & (samples.weights[:, index] > 0)
            y, w = samples.labels[seen, index], samples.weights[seen, index]
            p = 1 / (1 + np.exp(-samples.logits[seen, index]))
            auc = roc_auc_score(y, p, sample_weight=w)
            assert scores[task, name].auc == pytest.approx(auc, abs=1e-9)
            loss = log_loss(y, p, sample_weight=w)
            assert scores[task, name].logloss == pytest.approx(loss, abs=1e-9)
            assert sizes[name].positive_rates[index] == pytest.approx(np.average(y, weights=w))


def test_labels_of_one_kind_or_none_give_none() -> None:
    labels = array([[1, 0], [1, 1], [0, 0]])
    weights = array([[1, 0], [1, 1], [1, 1]])
    samples = Joined(np.zeros((3, 2)), labels, weights, None)
    subsets = np.array([0, 0, 1])
    scores, sizes = scores_of(TASKS, samples, subsets), sizes_of(samples, subsets)
    assert scores["click", "A"].auc is None
    assert scores["click", "A"].logloss == pytest.approx(np.log(2))
    assert scores["click", "B"] == Score(None, None)
    assert sizes["B"] == (0, 0.0, (None, None))
    assert sizes["A"].positive_rates == (1.0, 1.0)
    assert sizes["comparable"].positive_rates == (0.0, 0.0)
    single = {("click", "A"): Score(0.5, 0.7)}
    assert gains({("click", "A"): scores["click", "B"]}, single) == {("click", "A"): (None, None)}


def test_a_gain_is_better_when_more() -> None:
    found = gains({("click", ALL): Score(0.7, 0.5)}, {("click", ALL): Score(0.6, 0.45)})
    assert found["click", ALL] == pytest.approx((0.1, -0.05))


@pytest.mark.parametrize(
    ("count", "comparable", "expected"),
    [
        (1, 0, ["--buckets", "1", "2 and more"]),
        (0, 0, ["--buckets", "0"]),
        (10, 9, ["--comparable", "9", "10 buckets", "0 to 8"]),
        (10, -1, ["--comparable", "-1"]),
    ],
)
def test_bad_buckets(count: int, comparable: int, expected: list[str]) -> None:
    with pytest.raises(UserError) as error:
        Buckets(count, comparable)
    assert [part for part in expected if part not in str(error.value)] == []


def test_titles() -> None:
    names = [title(name, TASKS) for name in (ALL, *SUBSETS)]
    assert names == ["all", "click-overwhelming", "comparable", "like-overwhelming"]
