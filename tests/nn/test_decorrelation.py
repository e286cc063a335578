"""The penalty is the mean absolute covariance of the owners' columns, over the rows that count."""

from itertools import combinations

import pytest
import torch

from stem_torchrec.errors import UserError
from stem_torchrec.nn.decorrelation import Decorrelation
from tests.nn.models.test_every_model import model_with

B = 7
OWNERS = {"shared": ("user", "item", "hour"), "click": ("item",), "like": ("hour", "item")}
WIDTHS = {"user": 3, "item": 3, "hour": 3}, {"user": 2, "item": 5, "hour": 3}
ROWS = torch.tensor([1.0, 0, 1, 1, 0, 1, 1])


def pooled_of(widths, generator_seed=0):
    generator = torch.Generator().manual_seed(generator_seed)
    sizes = {owner: sum(widths[name] for name in names) for owner, names in OWNERS.items()}
    return {
        owner: torch.randn(B, size, generator=generator, requires_grad=True)
        for owner, size in sizes.items()
    }


def columns_of(pooled, owner, name, widths):
    parts = pooled[owner].split([widths[each] for each in OWNERS[owner]], dim=1)
    return parts[OWNERS[owner].index(name)]


def expected(pooled, widths):
    total = 0.0
    for p, q in combinations(OWNERS, 2):
        both = set(OWNERS[p]) & set(OWNERS[q])
        for name in both:
            parts = [columns_of(pooled, owner, name, widths) for owner in (p, q)]
            joint, dim = torch.cat(parts, dim=1)[ROWS == 1], widths[name]
            covariance = torch.cov(joint.t(), correction=0)[:dim, dim:]
            total = total + covariance.abs().sum() / dim**2 / len(both)
    return total


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_value_and_gradient_are_the_definitions(widths):
    pooled = pooled_of(widths)
    found = Decorrelation(OWNERS, widths, 0.5)(pooled, ROWS)
    wanted = 0.5 * expected(pooled, widths)
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(loss, list(pooled.values())) for loss in (found, wanted)]
    torch.testing.assert_close(*gradients)
    assert not any(gradient[ROWS == 0].any() for gradient in gradients[0])


def test_without_a_row_it_is_zero():
    pooled = pooled_of(WIDTHS[0])
    found = Decorrelation(OWNERS, WIDTHS[0], 0.5)(pooled, torch.zeros(B))
    gradients = torch.autograd.grad(found, list(pooled.values()))
    assert found == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ["stem_net", "me_mmoe", "me_ple"])
def test_models_with_several_sets_of_tables_have_it(name):
    assert model_with(name).decorrelation is None
    model = model_with(name, decorrelation=0.5)
    assert model.decorrelation.weight == 0.5
    assert model.state_dict().keys() == model_with(name).state_dict().keys()


def test_one_set_of_tables_has_nothing_to_be_decorrelated_from():
    with pytest.raises(UserError, match=r"model.decorrelation: 0.5, but no two owners"):
        model_with("me_mmoe", num_shared_experts=1, decorrelation=0.5)
