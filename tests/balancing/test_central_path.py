"""The interior-point method where rounding works against it."""

import pytest
import torch

from stem_torchrec.balancing.central_path import Local, minimize_on_simplex


def solve(hessian: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
    one = torch.ones((), dtype=torch.float64)
    start = torch.ones_like(plane) / plane.sum()
    return minimize_on_simplex(
        lambda x, _: Local(hessian @ x, hessian, one),
        plane,
        start,
        one / len(plane),
        shrink=0.3,
        iterations=25,
    )


def test_golden():
    """min ½ Σ h_t x_t² on Σ x_t = 1 is x_t in proportion to 1 / h_t."""
    found = solve(torch.diag(torch.tensor([1.0, 2.0, 4.0])).double(), torch.ones(3).double())
    torch.testing.assert_close(found, torch.tensor([4.0, 2.0, 1.0]).double() / 7)


@pytest.mark.parametrize("seed", range(20))
def test_hessian_far_from_semi_definite_stays_usable(seed):
    """The factorisation may fail; the point stays inside and gets better all the same."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    hessian = torch.ones(8, 8).double() + 0.1 * (noise + noise.T)
    plane = torch.logspace(-2, 0, 8).double()
    found, start = solve(hessian, plane), torch.ones(8).double() / plane.sum()
    assert found.isfinite().all()
    assert (found > 0).all()
    assert float(plane @ found) == pytest.approx(1.0)
    assert found @ hessian @ found < start @ hessian @ start
