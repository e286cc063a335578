"""One copy, and none, give what splitting and joining gives."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.distributed.by_owner import ByOwner, OutOfGrid

OWNERS = ("shared", "click", "like")
NO_IDS = KeyedJaggedTensor.empty()


def by_owner(owners=OWNERS, widths=(4, 4), mean_bags=()):
    names = dict(zip(("user", "item"), widths, strict=True))
    places = {o: {name: (name, k) for name in names} for k, o in enumerate(owners)}
    return ByOwner(places, names, mean_bags)


def joined(sums):
    """Of every owner, out of a grid of its features and owners."""
    columns = sums.values().split(4, dim=1)
    return {o: torch.cat(columns[k :: len(OWNERS)], dim=1) for k, o in enumerate(OWNERS)}


@pytest.mark.parametrize("in_order", [True, False])
def test_tables_owner_by_owner_are_not_copied(in_order):
    places = {o: {name: (f"{name}@{o}", 0) for name in ("user", "item")} for o in OWNERS}
    keys = [key for of_owner in places.values() for key, _ in of_owner.values()]
    keys = keys if in_order else keys[::-1]
    values = torch.randn(5, 6 * 4)
    sums = KeyedTensor(keys, [4] * 6, values)
    pooled = ByOwner(places, {"user": 4, "item": 4}, [])(sums, NO_IDS)
    assert [*pooled] == [*OWNERS]
    for owner, part in pooled.items():
        expected = torch.cat([sums[key] for key, _ in places[owner].values()], dim=1)
        assert torch.equal(part, expected)
        shared = part.untyped_storage().data_ptr() == values.untyped_storage().data_ptr()
        assert shared is in_order


def test_out_of_a_grid():
    values = torch.randn(5, 2 * 3 * 4, requires_grad=True)
    sums = KeyedTensor(["user", "item"], [12, 12], values)
    pooled = joined(sums)
    found = OutOfGrid.apply(values, 2, 3)
    for part, expected in zip(by_owner()(sums, NO_IDS).values(), pooled.values(), strict=True):
        assert torch.equal(part, expected)
    outgoing = [torch.randn(5, 8) for _ in OWNERS]
    for part, expected in zip(found, pooled.values(), strict=True):
        assert torch.equal(part, expected)
    (expected,) = torch.autograd.grad(list(pooled.values()), values, outgoing)
    (gradient,) = torch.autograd.grad(found, values, outgoing)
    assert torch.equal(gradient, expected)
    alone = OutOfGrid.apply(values, 2, 3)[1]
    (of_one,) = torch.autograd.grad(alone, values, outgoing[1])
    assert torch.equal(of_one.view(5, 2, 3, 4)[:, :, 1].reshape(5, 8), outgoing[1])
    assert of_one.count_nonzero() == outgoing[1].count_nonzero()


@pytest.mark.parametrize(
    ("module", "keys", "expected"),
    [
        (by_owner(), ["user", "item"], True),
        (by_owner(), ["item", "user"], False),
        (by_owner(widths=(4, 8)), ["user", "item"], False),
        (by_owner(mean_bags=["item"]), ["user", "item"], False),
        (ByOwner({"shared": {"a": ("a", 0), "b": ("b", 0)}, "like": {"a": ("a", 1)}},
                 {"a": 4, "b": 4}, []), ["a", "b"], False),
    ],
)  # fmt: skip
def test_what_is_a_grid(module, keys, expected):
    assert module.is_grid(keys) is expected
