"""K batched perceptrons are K plain ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stem_torchrec.nn.mlp import BatchedLinear, BatchedMlp, NarrowProduct, num_parts, rows_by_rows


def plain_twins(batched, num):
    """K ``nn.Sequential`` with the weights of the batched perceptrons."""
    layers = [*batched.hidden, *([batched.last] if batched.last is not None else [])]
    twins = []
    for k in range(num):
        modules = []
        for layer in layers:
            linear = nn.Linear(*layer.weight.shape[1:])
            with torch.no_grad():
                linear.weight.copy_(layer.weight[k].t())
                linear.bias.copy_(layer.bias[k].ravel())
            modules.append(linear)
            if layer is not batched.last:
                modules.append(nn.ReLU())
        twins.append(nn.Sequential(*modules))
    return twins


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(1, 4),
    batch=st.integers(1, 5),
    width_in=st.integers(1, 6),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    width_out=st.none() | st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_equal_plain_linears(num, batch, width_in, hidden, width_out, seed):
    torch.manual_seed(seed)
    batched = BatchedMlp(num, width_in, hidden, width_out)
    twins = plain_twins(batched, num)
    x = torch.randn(num, batch, width_in, requires_grad=True)
    y = torch.stack([twin(x[k]) for k, twin in enumerate(twins)])
    gradient = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, gradient)
    assert batched(x).shape == (num, batch, batched.width_out)
    torch.testing.assert_close(batched(x), y)
    (found,) = torch.autograd.grad(batched(x), x, gradient)
    torch.testing.assert_close(found, expected)


def test_gradients_of_weights_equal_plain_linears():
    torch.manual_seed(0)
    batched = BatchedMlp(3, 5, [7, 6], 2)
    twins = plain_twins(batched, 3)
    x = torch.randn(3, 8, 5)
    batched(x).square().sum().backward()
    for k, twin in enumerate(twins):
        twin(x[k]).square().sum().backward()
        linears = [module for module in twin if isinstance(module, nn.Linear)]
        for layer, linear in zip([*batched.hidden, batched.last], linears, strict=True):
            torch.testing.assert_close(layer.weight.grad[k].t(), linear.weight.grad)
            torch.testing.assert_close(layer.bias.grad[k].ravel(), linear.bias.grad)


def test_a_perceptron_sees_nothing_of_another():
    torch.manual_seed(0)
    batched = BatchedMlp(3, 4, [5], 2)
    x = torch.randn(3, 6, 4, requires_grad=True)
    batched(x)[1].sum().backward()
    for gradient in (x.grad, *(p.grad for p in batched.parameters())):
        reached = (gradient != 0).flatten(1).any(dim=1)
        assert reached.tolist() == [False, True, False]


def test_initial_weights_lie_as_those_of_a_linear_layer():
    torch.manual_seed(0)
    layer = BatchedLinear(64, 25, 30)
    for parameter in (layer.weight.detach(), layer.bias.detach()):
        bound = 1 / math.sqrt(25)
        assert parameter.abs().max() <= bound
        assert parameter.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert parameter.mean() == pytest.approx(0, abs=0.01)


def test_no_perceptron_gives_no_output():
    assert BatchedMlp(0, 4, [5], 2)(torch.zeros(0, 6, 4)).shape == (0, 6, 2)


def test_dropout_follows_hidden_layers_alone():
    torch.manual_seed(0)
    mlp = BatchedMlp(1, 4, [1000], None, dropout=0.4)
    x = torch.ones(1, 1, 4)
    mlp.eval()
    kept = mlp(x) > 0
    mlp.train()
    dropped = (mlp(x)[kept] == 0).float().mean()
    assert dropped == pytest.approx(0.4, abs=0.08)
    last = BatchedMlp(1, 4, [], 1000, dropout=0.4)
    assert (last(x) != 0).all()


@pytest.mark.parametrize("width_out", [1, 3])
@pytest.mark.parametrize("num_rows", [16, 2048])
def test_a_product_to_few_outputs_has_the_gradients_of_any(width_out, num_rows):
    """A GPU's; the larger one sums in parts."""
    torch.manual_seed(0)
    layer = BatchedLinear(2, 5, width_out)
    x = torch.randn(2, num_rows, 5, requires_grad=True)
    inputs, outgoing = [x, layer.weight, layer.bias], torch.randn(2, num_rows, width_out)
    out, expected = NarrowProduct.apply(*inputs), layer(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, outgoing),
        torch.autograd.grad(expected, inputs, outgoing),
        rtol=1e-5,
        atol=1e-4,
    )


def test_a_product_to_few_outputs_under_autocast_has_gradients_of_its_weights_type():
    layer = BatchedLinear(2, 5, 3)
    x = torch.randn(2, 16, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = NarrowProduct.apply(x, layer.weight, layer.bias)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(layer.bias.grad, torch.full((2, 3), 16.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_narrow_layers_are_those_products():
    assert BatchedLinear(2, 5, 3).cuda()(torch.randn(2, 16, 5).cuda()).grad_fn.name() == (
        "NarrowProductBackward"
    )


def test_sums_over_rows_in_parts():
    torch.manual_seed(0)
    x, y = torch.randn(2, 24, 5), torch.randn(2, 24, 3)
    for parts in (1, 2, 8):
        torch.testing.assert_close(rows_by_rows(x, y, parts), torch.einsum("kbi,kbo->kio", x, y))


@pytest.mark.parametrize(
    ("rows", "parts"),
    [(0, 1), (1, 1), (511, 1), (1024, 2), (65536, 128), (1792, 2), (5000, 8), (20480, 32)],
)
def test_parts_divide_the_rows(rows, parts):
    assert num_parts(rows) == parts
    assert rows % parts == 0


def test_autocast_leaves_logits_in_float32():
    mlp = BatchedMlp(2, 8, (16,), 1)
    x = torch.randn(2, 500, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = mlp(x)
        hidden = mlp.hidden[0](x)
    assert (logits.dtype, hidden.dtype) == (torch.float32, torch.bfloat16)
    assert len(logits.unique()) > 990  # bfloat16 would leave some 300
    torch.testing.assert_close(logits, mlp(x), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5, 3)], ids=["one copy", "a copy for each"])
def test_common_columns_are_columns_of_each(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mlp = BatchedMlp(3, 10, (6, 4), 2)
    own, common = torch.randn(3, 5, 7, requires_grad=True), torch.randn(shape, requires_grad=True)
    inputs = [own, common, *mlp.parameters()]
    beside = mlp(torch.cat([own, common.expand(3, -1, -1)], dim=-1))
    found = mlp(own, common)
    torch.testing.assert_close(found, beside)
    outgoing = torch.randn_like(found)
    expected = torch.autograd.grad(beside, inputs, outgoing)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, outgoing), expected)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("width_out", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_gradients_are_those_of_a_backward_for_each(
    num: int, width_out: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    mlp = BatchedMlp(num, 7, (6, 4), width_out)
    x = torch.randn(5, 7, requires_grad=True)
    at_outputs = torch.randn(2, num, 5, width_out or 4).to(dtype)
    expected = torch.stack([torch.autograd.grad(mlp(x), x, g)[0] for g in at_outputs.float()])
    found = mlp.input_gradients(x, at_outputs)
    assert found.dtype == x.dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
