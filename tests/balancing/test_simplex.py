"""Projection on the simplex of the active tasks."""

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from scipy.optimize import brentq

from stem_torchrec.balancing.simplex import project_on_simplex

ALL = torch.ones(3, dtype=torch.bool)


def test_golden():
    projected = project_on_simplex(torch.tensor([0.5, 1.0, -1.0]), ALL)
    torch.testing.assert_close(projected, torch.tensor([0.25, 0.75, 0.0]))
    inside = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    torch.testing.assert_close(project_on_simplex(inside, ALL), inside)


def test_inactive_entries_are_out():
    active = torch.tensor([True, False, True])
    projected = project_on_simplex(torch.tensor([0.1, 5.0, 0.1]), active)
    torch.testing.assert_close(projected, torch.tensor([0.5, 0.0, 0.5]))
    assert not project_on_simplex(torch.tensor([0.1, 5.0, 0.1]), ~ALL).any()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=20).filter(
        lambda pairs: any(active for _, active in pairs)
    )
)
def test_equals_the_root_of_its_threshold(pairs):
    values = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    active = torch.tensor([active for _, active in pairs])
    kept = values[active]
    threshold = brentq(
        lambda t: float((kept - t).clamp_min(0).sum()) - 1,
        float(kept.min()) - 2,
        float(kept.max()),
        xtol=1e-13,
    )
    expected = torch.where(active, (values - threshold).clamp_min(0), 0.0)
    torch.testing.assert_close(project_on_simplex(values, active), expected, atol=1e-9, rtol=0)
