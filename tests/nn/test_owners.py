"""Modules say whose their parameters are."""

import pytest
import torch
from torch import nn

from stem_torchrec.data import schema
from stem_torchrec.nn import MODELS, BatchedMlp, Inputs, Owned, ownership
from stem_torchrec.nn import owners as nn_owners
from tests.nn.models.test_every_model import ORDERS, TASKS, model_with


class Bias(Owned):
    def __init__(self, owner: str | None = None) -> None:
        super().__init__()
        self.owner = owner
        self.bias = nn.Parameter(torch.zeros(2, 3))
        self.plain = nn.Parameter(torch.zeros(2))
        self.child = nn.Linear(1, 1)

    def owned_dims(self) -> dict[str, dict[int, tuple[str, ...]]]:
        return {"bias": {0: ("a", "b")}}


def test_what_a_module_says_holds_for_its_own_parameters() -> None:
    found = ownership(nn.Sequential(Bias(), nn.Linear(2, 2)))
    assert found["0.bias"].dims == {0: ("a", "b")}
    assert {name for name, of in found.items() if of.dims} == {"0.bias"}
    assert all(of.role == name and of.owner is None for name, of in found.items())


def test_an_owner_has_all_that_is_in_its_module_and_takes_the_place_of_an_index() -> None:
    module = nn.Module()
    module.parts = nn.ModuleList([Bias("click"), Bias("like")])
    found = ownership(module)
    assert found["parts.1.child.weight"].owner == "like"
    assert found["parts.1.child.weight"].role == found["parts.0.child.weight"].role
    assert found["parts.0.bias"].dims == {0: ("a", "b")}


def test_labels_are_one_for_each_index() -> None:
    with pytest.raises(ValueError, match="owners: 1 labels; allowed: one for each of 2"):
        BatchedMlp(2, 4, (3,), owners=["click"])
    with pytest.raises(ValueError, match="outputs: 2 labels; allowed: one for each of 3"):
        BatchedMlp(2, 4, (3,), 3, outputs=["a", "b"])


@pytest.mark.parametrize("name", MODELS)
def test_every_models_labels_fit_its_parameters(name: str) -> None:
    model = model_with(name)
    owners = model.ownership()
    assert owners.keys() == dict(model.named_parameters()).keys()
    for weight, parameter in model.named_parameters():
        for dim, labels in owners[weight].dims.items():
            assert len(labels) == len(set(labels)) == parameter.shape[dim], weight
    of_tasks = [task for of in owners.values() for ls in of.dims.values() for task in ls]
    assert {label.partition(":")[0] for label in of_tasks} >= set(TASKS)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_one_role_never_have_the_same_owner_twice(name: str) -> None:
    """A weight of a task must be in one place."""
    order = ORDERS.get(name)
    seen = set()
    for of in model_with(name, task_order=order).ownership().values():
        for label in of.dims.get(0, (of.owner,)):
            assert (of.role, label) not in seen
            seen.add((of.role, label))


def test_inputs_are_checked() -> None:
    with pytest.raises(ValueError, match="features: none"):
        Inputs({}, dim=4, tasks=("click",))
    for tasks in ((), ("click", "click"), ("click", "shared")):
        with pytest.raises(ValueError, match=r"tasks: .*different names"):
            Inputs({"user": "user"}, dim=4, tasks=tasks)


def test_shared_is_the_word_that_no_task_may_have_as_its_name() -> None:
    assert nn_owners.SHARED == schema.SHARED
