"""CAGrad: its inner problem against a general solver, the direction's properties, TorchJD."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from stem_torchrec.balancing.rules.cagrad import CaGradOptions, CaGradRule, worst_case_weights
from tests.balancing.grams import KINDS, apply, gradients, gram_of

RADII = [0.1, 0.5, 0.9]


class Inner:
    """F(w) = productsᵀ w + radius √(wᵀ G w) with G scaled to a largest diagonal entry of 1."""

    def __init__(self, gram: torch.Tensor, c: float) -> None:
        self.gram = gram.double() / gram.double().diagonal().max()
        self.mean = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64)
        self.products = self.gram @ self.mean
        self.radius = c * (self.mean @ self.products).clamp_min(0).sqrt()

    def __call__(self, weights: torch.Tensor) -> float:
        length = (weights @ self.gram @ weights).clamp_min(0).sqrt()
        return float(self.products @ weights + self.radius * length)

    def solve(self) -> torch.Tensor:
        return worst_case_weights(self.gram, self.products, self.radius, self.mean)

    def oracle(self) -> float:
        """The best of several starts of a sequential quadratic program."""
        size = len(self.mean)
        gram, products, radius = self.gram.numpy(), self.products.numpy(), float(self.radius)
        values = []

        def value(w: NDArray[np.float64]) -> float:
            return float(products @ w + radius * np.sqrt(max(w @ gram @ w, 0)))

        for start in (self.mean.numpy(), *np.eye(size)[: min(size, 8)] * 0.5 + 0.5 / size):
            found = minimize(
                value,
                start,
                method="SLSQP",
                bounds=[(0, 1)] * size,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                options={"ftol": 1e-12, "maxiter": 300},
            )
            weights = torch.from_numpy(np.maximum(found.x, 0) / np.maximum(found.x, 0).sum())
            values.append(self(weights))
        return min(values)


@pytest.mark.parametrize("c", RADII)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [2, 3, 8])
def test_inner_problem_not_worse_than_a_general_solver(num_tasks, kind, c):
    """1e-6 of the largest product; 2e-4 where gradients that oppose exactly put it at a kink."""
    for dim in (2, 500):
        inner = Inner(gram_of(gradients(kind, num_tasks, dim, 30.0)), c)
        found = inner.solve()
        assert found.min() >= 0
        assert float(found.sum()) == pytest.approx(1.0)
        tolerance = 2e-4 if kind == "opposed" else 1e-6
        gap = inner(found) - inner.oracle()
        assert gap <= tolerance * float(inner.products.abs().max())


@pytest.mark.parametrize("num_tasks", [2, 8, 64])
def test_best_worst_case_within_the_ball(num_tasks):
    """max_d min_t ⟨g_t, d⟩ over the ball equals min_w F(w): no gap between primal and dual."""
    c = 0.5
    rows = gradients("torn", num_tasks, 500).double()
    multipliers = apply(
        CaGradRule(CaGradOptions(cagrad_c=c)), gram_of(rows.float())
    ).multipliers.double()
    average, direction = rows.mean(dim=0), multipliers @ rows
    radius = c * average.norm()
    assert float((direction - average).norm() / radius) == pytest.approx(1.0, rel=1e-4)
    inner = Inner(gram_of(rows.float()), c)
    scale = float(rows.norm(dim=1).max()) ** 2
    worst = float((rows @ direction).min())
    assert worst / scale == pytest.approx(inner(inner.solve()), abs=1e-5)


def test_golden():
    """Orthogonal unit gradients: w is uniform, d = (1 + c) g_0."""
    found = apply(CaGradRule(CaGradOptions(cagrad_c=0.5)), torch.eye(4)).multipliers
    torch.testing.assert_close(found, torch.full((4,), 1.5 / 4))
    gram = gram_of(gradients("torn", 4, 20))
    assert apply(CaGradRule(CaGradOptions(cagrad_c=0.0)), gram).multipliers.tolist() == [0.25] * 4


def test_opposed_gradients_stay_finite():
    found = apply(CaGradRule(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    torch.testing.assert_close(found.multipliers, torch.tensor([0.5, 0.5]))
    assert not found.fallback


@pytest.mark.parametrize("c", RADII)
@pytest.mark.parametrize("num_tasks", [2, 4, 8])
def test_equals_torchjd(num_tasks, c):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    pytest.importorskip("cvxpy", reason="TorchJD's CAGrad needs cvxpy")
    gram = gram_of(gradients("torn", num_tasks, 500)).double()
    theirs = torchjd.CAGradWeighting(c=c)(gram)
    ours = apply(CaGradRule(CaGradOptions(cagrad_c=c)), gram.float()).multipliers.double()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
