"""Plans of the benchmark's sizes: every table placed, memory even."""

import pytest
from planning import CASES, Case, measure


@pytest.mark.parametrize(
    "case",
    [
        Case(90, 16, alike=True),
        Case(90, 16, alike=False),
        *(pytest.param(case, marks=pytest.mark.slow) for case in CASES),
    ],
    ids=lambda case: case.name,
)
def test_memory_is_even(case):
    row = measure(case)
    assert row["device_largest_over_mean"] <= 1.2
    assert row["divided"] < case.tables / 2
