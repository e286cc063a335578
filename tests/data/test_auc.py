"""AUC and GAUC against scikit-learn and against a loop over groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from stem_torchrec.data.auc import auc, grouped_auc


@st.composite
def samples(draw):
    """Scores with many ties, labels, weights (also zero), groups."""
    n = draw(st.integers(1, 60))
    scores = draw(arrays(np.int64, n, elements=st.integers(-4, 4))) / 3
    labels = draw(arrays(np.int64, n, elements=st.integers(0, 1))).astype(float)
    weights = draw(arrays(np.int64, n, elements=st.integers(0, 5))) / 2
    groups = draw(arrays(np.int64, n, elements=st.integers(-2, 6)))
    return scores, labels, weights, groups


def has_both(labels, weights):
    return len(set(labels[weights > 0])) == 2


def pairwise(scores, labels, weights):
    """The definition, pair by pair."""
    p, n = labels == 1, labels == 0
    wins = (scores[p][:, None] > scores[n]) + 0.5 * (scores[p][:, None] == scores[n])
    mass = weights[p][:, None] * weights[n]
    return (mass * wins).sum() / mass.sum()


@given(samples())
def test_auc(sample):
    scores, labels, weights, _ = sample
    if not has_both(labels, weights):
        assert auc(scores, labels, weights) is None
        return
    found = auc(scores, labels, weights)
    assert found == pytest.approx(pairwise(scores, labels, weights), abs=1e-12)
    expected = roc_auc_score(labels, scores, sample_weight=weights)
    assert found == pytest.approx(expected, abs=1e-6)


@given(samples())
def test_grouped_auc(sample):
    scores, labels, weights, groups = sample
    areas, masses = [], []
    for group in np.unique(groups):
        own = groups == group
        if has_both(labels[own], weights[own]):
            areas.append(pairwise(scores[own], labels[own], weights[own]))
            masses.append(weights[own].sum())
    found = grouped_auc(scores, labels, weights, groups)
    if not areas:
        assert found is None
    else:
        assert found == pytest.approx(np.average(areas, weights=masses), abs=1e-12)


@given(samples(), st.integers(0, 1000))
def test_the_order_of_samples_does_not_matter(sample, seed):
    order = np.random.default_rng(seed).permutation(len(sample[0]))
    shuffled = [values[order] for values in sample]
    assert auc(*shuffled[:3]) == pytest.approx(auc(*sample[:3]))
    assert grouped_auc(*shuffled) == pytest.approx(grouped_auc(*sample))


def test_many_samples_with_few_scores():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200_000).astype(float)
    scores = np.round(generator.normal(size=len(labels)) + labels / 2, 2)
    weights = np.ones(len(labels))
    expected = roc_auc_score(labels, scores)
    assert auc(scores, labels, weights) == pytest.approx(expected, abs=1e-9)


def test_one_group_is_the_plain_auc():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=50), generator.integers(0, 2, 50).astype(float)
    weights = np.ones(50)
    assert grouped_auc(scores, labels, weights, np.full(50, 9)) == auc(scores, labels, weights)


def test_no_samples():
    nothing = np.zeros(0)
    assert auc(nothing, nothing, nothing) is None
    assert grouped_auc(nothing, nothing, nothing, nothing) is None
