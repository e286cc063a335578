"""Properties of every rule over random Gram matrices, rank-deficient ones included."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.balancing.every_rule import EVERY_RULE, SIGNED, SYMMETRIC
from tests.balancing.grams import KINDS, apply, gradients, gram_of

GRADIENTS = st.builds(
    gradients,
    st.sampled_from(KINDS),
    st.integers(2, 12),
    st.integers(1, 20),
    st.sampled_from([1.0, 30.0, 1e3]),
    st.integers(0, 10_000),
)
QUICK = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize("name", EVERY_RULE)
@QUICK
@given(rows=GRADIENTS)
def test_finite_and_not_negative(name, rows):
    found = apply(EVERY_RULE[name](len(rows)), gram_of(rows))
    assert not found.fallback
    assert found.multipliers.isfinite().all()
    assert name in SIGNED or (found.multipliers >= 0).all()
    assert found.multipliers.any()


@pytest.mark.parametrize("name", SYMMETRIC)
@QUICK
@given(rows=GRADIENTS, data=st.data())
def test_permutation_of_tasks_permutes_the_multipliers(name, rows, data):
    """Where the weights are unique; else the combined gradients' products with each task agree."""
    shuffle = torch.tensor(data.draw(st.permutations(range(len(rows)))))
    rule = EVERY_RULE[name]
    losses = torch.linspace(0.5, 1.0, len(rows))
    gram = gram_of(rows.double()).float()
    moved = gram[shuffle][:, shuffle]
    before = apply(rule(len(rows)), gram, losses=losses).multipliers.double()
    after = apply(rule(len(rows)), moved, losses=losses[shuffle]).multipliers.double()
    restored = torch.empty_like(after)
    restored[shuffle] = after
    difference = before - restored
    norms = gram.double().diagonal().sqrt()
    moved_by = (difference @ gram.double() @ difference).clamp_min(0).sqrt()
    reference = (before * norms).norm()
    assert moved_by <= 2e-3 * reference
    if name.startswith("multi_balance"):
        torch.testing.assert_close(restored, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in EVERY_RULE if name != "fairgrad"])
@QUICK
@given(rows=GRADIENTS, exponent=st.integers(-6, 6))
def test_common_scale_of_all_gradients_changes_nothing(name, rows, exponent):
    """A power of two, so that the float32 Gram has the same digits."""
    gram = gram_of(rows)
    before = apply(EVERY_RULE[name](len(rows)), gram).multipliers
    after = apply(EVERY_RULE[name](len(rows)), gram * 4.0**exponent).multipliers
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mgda", "pcgrad"])
@QUICK
@given(rows=GRADIENTS)
def test_two_task_direction_hurts_neither(name, rows):
    rows = rows[:2].double()
    multipliers = apply(EVERY_RULE[name](2), gram_of(rows).float()).multipliers.double()
    direction = multipliers @ rows
    sizes = rows.norm(dim=1)
    assert (rows @ direction >= -1e-5 * sizes * (multipliers * sizes).max()).all()
