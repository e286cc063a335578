"""Compiled experts, gates and towers: one graph each, and the numbers of those that are not."""

import copy

import pytest
import torch
from torch import nn

from stem_torchrec.nn import Inputs
from stem_torchrec.nn.compiled import PARTS, compile_model, compile_parts
from stem_torchrec.nn.mlp import BatchedLinear, NarrowProduct
from stem_torchrec.nn.models import MODELS

# torch.compile looks at what torch warns of, and uses what it deprecates.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore::DeprecationWarning"
)

SIZES = {
    "expert_widths": (12, 8),
    "tower_widths": (6,),
    "gate_widths": (6,),
    # Parts of one size share a graph: HoME's have different ones with these.
    "num_task_experts": 2,
    "task_groups": {"click": "watch", "like": "react", "share": "react"},
}


class Graphs:
    """A backend that runs what it gets, and counts."""

    def __init__(self):
        self.number = 0

    def __call__(self, graph, inputs):
        self.number += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(name, **options):
    kind = MODELS[name]
    fields = kind.options_type.__dataclass_fields__
    known = {key: value for key, value in (SIZES | options).items() if key in fields}
    inputs = Inputs({"a": "user", "b": "item", "c": "item"}, 4, ("click", "like", "share"), 2)
    torch.manual_seed(0)
    return kind(inputs, kind.options_type(**known))


def gradients(model, num_rows=5):
    generator = torch.Generator().manual_seed(1)
    pooled = {
        owner: torch.randn(num_rows, 4 * len(names), generator=generator, requires_grad=True)
        for owner, names in model.owners.items()
    }
    logits = model(pooled, torch.randn(num_rows, 2, generator=generator))
    inputs = [*pooled.values(), *model.parameters()]
    loss = logits.square().mean(dim=0).sum()
    return [logits, *torch.autograd.grad(loss, inputs, materialize_grads=True)]


every_model = pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in sorted(MODELS) if name != "esmm"),
        ("esmm", {"task_order": ("click", "like")}),
        ("stem_net", {"expert": "nfwfm", "layers": 2}),
    ],
)


@every_model
def test_a_model_that_nobody_balances_is_one_graph_with_the_same_numbers(name, options):
    model = model_of(name, **options)
    compiled, graphs = copy.deepcopy(model), Graphs()
    compile_model(compiled, backend=graphs)
    expected = gradients(model)
    torch.testing.assert_close(gradients(compiled), expected, rtol=0, atol=0)
    assert graphs.number == 1
    assert compiled.state_dict().keys() == model.state_dict().keys()


def test_a_model_with_a_fork_is_compiled_in_parts():
    model, graphs = model_of("stem_net"), Graphs()
    model.fork = nn.Identity()
    compile_model(model, backend=graphs)
    assert "forward" not in vars(model)
    assert "forward" in vars(model.towers)


@every_model
def test_a_part_is_one_graph_with_the_same_numbers(name, options):
    model = model_of(name, **options)
    compiled, graphs = copy.deepcopy(model), Graphs()
    parts = compile_parts(compiled, backend=graphs)
    expected = gradients(model)
    torch.testing.assert_close(gradients(compiled), expected, rtol=0, atol=0)
    assert graphs.number == len(parts) > 0
    gradients(compiled)
    assert graphs.number == len(parts)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    inside = [m for part in parts for m in compiled.get_submodule(part).modules()]
    assert all(any(m is i for i in inside) for m in compiled.modules() if isinstance(m, PARTS))


def test_evaluation_and_no_gradients_are_not_compiled():
    model, graphs = model_of("stem_net"), Graphs()
    compile_parts(model, backend=graphs)
    with torch.no_grad():
        gradientless = model({o: torch.randn(5, 12) for o in model.owners}, torch.randn(5, 2))
    model.eval()
    gradients(model)
    assert gradientless.shape == (5, 3)
    assert graphs.number == 0


def test_other_numbers_of_rows_make_one_more_graph_each_at_most():
    """Of a last batch, and of those after it."""
    model, graphs = model_of("stem_net"), Graphs()
    parts = compile_parts(model, backend=graphs)
    for num_rows in (5, 3, 7, 5, 4, 6):
        gradients(model, num_rows)
    assert graphs.number <= 2 * len(parts)


def test_a_break_in_a_part_is_an_error():
    model = nn.Sequential(*model_of("shared_bottom").children())
    part = next(m for m in model.modules() if isinstance(m, PARTS))
    inner = part.forward
    part.forward = lambda x: inner(x) if x.sum().item() > 0 else x
    compile_parts(model, backend="eager")
    with pytest.raises(torch._dynamo.exc.UserError):
        part(torch.randn(5, 14))


def test_a_gpus_product_to_few_outputs_compiles_for_any_number_of_rows():
    layer = BatchedLinear(2, 5, 3)

    def product(x):
        return NarrowProduct.apply(x, layer.weight, layer.bias)

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    for num_rows in (2048, 1500, 1024):
        x = torch.randn(2, num_rows, 5, requires_grad=True)
        found, expected = (
            torch.autograd.grad(call(x).sum(), [x, layer.weight, layer.bias])
            for call in (compiled, product)
        )
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_inductor_gives_the_same_to_rounding():
    model = model_of("stem_net")
    compiled = copy.deepcopy(model)
    compile_parts(compiled)
    torch.testing.assert_close(gradients(compiled), gradients(model), rtol=1e-5, atol=1e-6)


def test_aot_autograd_gives_the_same_to_rounding():
    model = model_of("stem_net")
    compiled = copy.deepcopy(model)
    compile_parts(compiled, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled), gradients(model), rtol=1e-6, atol=1e-7)
