"""Precisions are compared with the float32 run of the same data, seed and ranks."""

import pytest
from precision import summary


def row(precision: str, seed: int, ranks: int, auc: float) -> dict[str, object]:
    identity = {"data": "d", "precision": precision, "seed": seed, "ranks": ranks}
    return identity | {"auc_mean": auc, "ne_mean": 1 - auc}


def test_differences_are_of_pairs() -> None:
    rows = [
        *(row("fp32", 0, 1, 0.7), row("fp32", 1, 1, 0.8)),
        *(row("bf16", 0, 1, 0.71), row("bf16", 1, 1, 0.81)),
        *(row("fp32, 2 ranks", 0, 2, 0.6), row("fp16 between 2 ranks", 0, 2, 0.58)),
    ]
    exact, bf16, two, comm = summary(rows)
    assert exact["auc_mean"] == pytest.approx(0.75)
    assert exact["auc_mean_difference"] == two["auc_mean_difference"] == 0
    assert bf16["auc_mean_difference"] == pytest.approx(0.01)
    assert bf16["auc_mean_difference_std"] == pytest.approx(0, abs=1e-12)
    assert bf16["auc_mean_std"] == pytest.approx(0.1 / 2**0.5)
    assert comm["auc_mean_difference"] == pytest.approx(-0.02)
    assert comm["ne_mean_difference"] == pytest.approx(0.02)
    assert (comm["seeds"], comm["auc_mean_difference_std"]) == (1, 0.0)
