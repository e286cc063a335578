"""Gradients of a gate in factors are what multiplying them out gives."""

import pytest
import torch

from stem_torchrec.balancing.gradients import Factored, Whole, inner_products
from stem_torchrec.balancing.gram import _pull
from stem_torchrec.nn.fork import GateGradient

T, M, B, H, WIDTH = 3, 4, 6, 5, 7


def both(weights=None, mixture=None):
    torch.manual_seed(0)
    weights = torch.randn(T, B, M, dtype=torch.float64) if weights is None else weights
    mixture = torch.randn(T, B, H, dtype=torch.float64) if mixture is None else mixture
    whole = weights.transpose(1, 2).unsqueeze(-1) * mixture.unsqueeze(1)
    return Factored(GateGradient(weights, mixture)), Whole(whole)


def test_inner_products_and_rows():
    factored, whole = both()
    torch.testing.assert_close(factored.inner_products(), whole.inner_products())
    torch.testing.assert_close(factored.rows(2), whole.rows(2))
    assert factored.rows(2).shape == (T, M, 2, H)


@pytest.mark.parametrize("multipliers", [[1.0, -2.0, 0.5], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
def test_combined(multipliers):
    multipliers = torch.tensor(multipliers, dtype=torch.float64)
    factored, whole = (g.combined(multipliers) for g in both())
    torch.testing.assert_close(factored, whole)
    assert factored.shape == (M, B, H)


@pytest.mark.parametrize("which", ["weights", "mixture"])
def test_a_task_that_is_not_finite_is_marked_and_leaves_no_trace(which):
    torch.manual_seed(1)
    parts = {"weights": torch.randn(T, B, M).double(), "mixture": torch.randn(T, B, H).double()}
    clean = both(**{name: value.clone() for name, value in parts.items()})
    parts[which][1, 3, 2] = torch.inf
    multipliers = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    for spoilt, expected in zip(both(**parts), clean, strict=True):
        assert spoilt.sizes().isfinite().tolist() == [True, False, True]
        assert expected.sizes().isfinite().all()
        assert (expected.sizes() > 0).all()
        found = spoilt.taking_part(multipliers).combined(multipliers)
        torch.testing.assert_close(found, expected.combined(multipliers))


def test_products_of_bfloat16_gradients_are_float32():
    torch.manual_seed(2)
    weights, mixture = torch.randn(T, B, M), torch.randn(T, B, H).bfloat16()
    exact = both(weights.double(), mixture.double())
    factored = Factored(GateGradient(weights, mixture))
    whole = Whole(mixture)
    assert factored.rows(2).dtype == mixture.dtype
    for found, expected in ((factored, exact[0]), (whole, Whole(mixture.double()))):
        gram = found.inner_products()
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram, expected.inner_products().float(), rtol=1e-5, atol=1e-5)
        assert found.combined(torch.ones(T)).dtype == mixture.dtype


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_inner_products_in_parts(parts):
    torch.manual_seed(0)
    gradients = torch.randn(T, 4, 6)
    found = inner_products(gradients, parts)
    torch.testing.assert_close(found, gradients.flatten(1) @ gradients.flatten(1).T)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpus_products_are_those_of_the_cpu(dtype):
    torch.manual_seed(0)
    weights, mixture = torch.rand(T, 4096, M), torch.randn(T, 4096, 64).to(dtype)
    for part, on_gpu in (
        (Whole(mixture), Whole(mixture.cuda())),
        (
            Factored(GateGradient(weights, mixture)),
            Factored(GateGradient(weights.cuda(), mixture.cuda())),
        ),
    ):
        expected = part.inner_products()
        close = {"rtol": 1e-5, "atol": 1e-4 * float(expected.max())}
        torch.testing.assert_close(on_gpu.inner_products().cpu(), expected, **close)


def test_the_trunk_is_gone_through_as_its_outputs_were_made():
    trunk, made = torch.nn.Linear(WIDTH, H), []
    trunk.register_forward_hook(lambda part, inputs, output: made.append(output.dtype))
    for dtype in (torch.bfloat16, torch.float32):
        pulled = _pull(trunk, torch.randn(B, WIDTH), torch.randn(T, B, H).to(dtype))
        assert (pulled.shape, pulled.dtype) == ((T, B, WIDTH), torch.float32)
    assert made == [torch.bfloat16, torch.float32]
