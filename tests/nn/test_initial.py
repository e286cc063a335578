"""First values of dense weights."""

import pytest
import torch
from torch import nn

from stem_torchrec.nn import MODELS, Inputs
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.mlp import BatchedLinear

INPUTS = Inputs({"user_id": "user", "item_id": "item"}, dim=8, tasks=("click", "buy"), num_dense=1)


def affine_maps(model: nn.Module) -> list[nn.Module]:
    return [p for p in model.modules() if isinstance(p, BatchedLinear | nn.Linear)]


@pytest.mark.parametrize("shape", [(3, 200, 100), (1, 100, 400)])
def test_xavier_is_normal_of_the_variance_that_its_widths_ask_for(shape) -> None:
    layer = BatchedLinear(*shape)
    initialise(layer, "xavier")
    scaled = layer.weight.flatten() / (2 / (shape[1] + shape[2])) ** 0.5
    assert scaled.std().item() == pytest.approx(1, abs=0.02)
    assert scaled.pow(4).mean().item() == pytest.approx(3, abs=0.2)  # 1.8 if it were uniform
    assert not layer.bias.any()


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_it(name: str) -> None:
    model_type = MODELS[name]
    for init, biases_are_zero in (("xavier", True), ("uniform", False)):
        torch.manual_seed(0)
        options = {"task_order": ("click", "buy")} if name in ("esmm", "aitm") else {}
        model = model_type(INPUTS, model_type.options_type(init=init, **options))
        maps = affine_maps(model)
        assert maps
        assert all(bool(part.bias.any()) != biases_are_zero for part in maps)


def test_an_unknown_one_is_refused() -> None:
    options = MODELS["mmoe"].options_type
    with pytest.raises(ValueError, match="init: 'kaiming'; allowed: xavier, uniform"):
        options(init="kaiming")
