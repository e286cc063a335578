"""MGDA: the min-norm weights against a quadratic-program oracle, and the normalisations."""

import pytest
import torch

from stem_torchrec.balancing.min_norm import min_norm_weights
from stem_torchrec.balancing.rules.mgda import MgdaOptions, MgdaRule
from tests.balancing.grams import (
    KINDS,
    apply,
    gradients,
    gram_of,
    min_norm_oracle,
    rounding,
    square_norm,
)

SHAPES = [(2, 2), (2, 500), (3, 1), (3, 500), (8, 2), (8, 8), (64, 1), (64, 21), (64, 64)]


def solve(gram: torch.Tensor) -> torch.Tensor:
    return min_norm_weights(gram.double(), torch.ones(len(gram), dtype=torch.bool))


@pytest.mark.parametrize("spread", [1.0, 1e3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_tasks", "dim"), SHAPES)
def test_objective_gap_to_the_oracle(num_tasks, dim, kind, spread):
    for seed in range(3):
        gram = gram_of(gradients(kind, num_tasks, dim, spread, seed))
        found, exact = solve(gram), torch.from_numpy(min_norm_oracle(gram))
        assert found.min() >= 0
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
        best = square_norm(gram, exact)
        slack = 1e-5 * abs(best) + rounding(gram, found)
        assert square_norm(gram, found) - best <= slack


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 64])
def test_conditions_of_the_optimum(num_tasks, kind):
    """No gradient points away from the combined one: ⟨g_t, d⟩ >= ‖d‖², equal where λ_t > 0."""
    gram = gram_of(gradients(kind, num_tasks, 500, 1e3)).double()
    weights = solve(gram)
    norms = gram.diagonal().sqrt()
    products = gram @ weights / (norms * norms.min())
    least = (weights @ gram @ weights) / (norms * norms.min())
    assert (products - least).min() >= -1e-5
    carrying = weights * norms > 1e-4 * (weights * norms).max()
    assert (products - least)[carrying].abs().max() <= 1e-5


def test_golden():
    orthogonal = torch.diag(torch.tensor([1.0, 4.0, 16.0]))
    expected = torch.tensor([16.0, 4.0, 1.0], dtype=torch.float64) / 21
    torch.testing.assert_close(solve(orthogonal), expected, atol=1e-9, rtol=0)
    opposed = torch.tensor([[1.0, -2.0], [-2.0, 4.0]])
    expected = torch.tensor([2.0, 1.0], dtype=torch.float64) / 3
    torch.testing.assert_close(solve(opposed), expected)
    inner = torch.tensor([[1.0, 2.0], [2.0, 9.0]])
    assert solve(inner).tolist() == [1.0, 0.0]
    assert solve(torch.ones(2, 2)).tolist() == [0.5, 0.5]
    torch.testing.assert_close(solve(torch.ones(5, 5)), torch.full((5,), 0.2).double())


def test_absent_task_leaves_the_others_as_if_alone():
    gram = gram_of(gradients("torn", 6, 500, 10.0))
    rest = torch.tensor([True, True, False, True, True, False])
    masked = torch.where(rest & rest.unsqueeze(1), gram, 0.0).double()
    found = min_norm_weights(masked, rest)
    assert not found[~rest].any()
    torch.testing.assert_close(found[rest], solve(gram[rest][:, rest]), atol=1e-8, rtol=0)


def test_normalizations_scale_the_gradients():
    rows, losses = gradients("torn", 5, 500, 100.0), torch.tensor([0.2, 0.1, 0.7, 1.5, 0.4])
    norms = rows.norm(dim=1)
    scales = {"none": torch.ones(5), "l2": norms, "loss": losses, "loss+": losses * norms}
    for name, scale in scales.items():
        expected = solve(gram_of(rows / scale.unsqueeze(1)))
        found = apply(
            MgdaRule(MgdaOptions(normalization=name)), gram_of(rows), losses=losses
        ).multipliers
        torch.testing.assert_close(found, expected.float(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_tasks", [2, 4, 8])
def test_not_worse_than_torchjd(num_tasks):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    for kind in ("random", "aligned", "torn"):
        gram = gram_of(gradients(kind, num_tasks, 50))
        theirs = torchjd.MGDAWeighting(epsilon=1e-9, max_iters=3000)(gram.double())
        best = square_norm(gram, theirs)
        assert square_norm(gram, solve(gram)) <= best + rounding(gram, theirs)
        assert square_norm(gram, solve(gram)) == pytest.approx(best, rel=1e-2, abs=1e-4)
