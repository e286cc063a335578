"""Mixtures of experts, and which gradient goes where."""

import pytest
import torch

from stem_torchrec.nn.fork import Handle
from stem_torchrec.nn.gates import _sums_by_products, mix, weighted_sums

SIZES = [(2, 3, 2), (1, 2, 1), (0, 3, 2), (3, 2, 0), (2, 1, 1)]  # M_s, T, M_t
B, H = 5, 4


REACHES = ["all", "forward", "own"]


def inputs(num_shared, num_tasks, num_own, num_gates=None, reach="all"):
    torch.manual_seed(0)
    num_experts = num_shared + (num_own if reach == "own" else num_tasks * num_own)
    shapes = (
        (num_gates or num_tasks, B, num_experts),
        (num_shared, B, H),
        (num_tasks, num_own, B, H),
    )
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def mix_of_one(logits, shared, tasks, reach):
    return mix(logits.softmax(dim=-1), handle(shared.unsqueeze(0)), tasks, reach)


def handle(outputs, gates=None):
    return Handle(torch.empty(0), outputs, gates)


def by_definition(logits, shared, tasks, reach):
    """Gate by gate, with ``detach`` on the experts of other tasks."""
    mixed = []
    for gate, gate_logits in enumerate(logits):
        readable = [*shared]
        for task, experts in enumerate(tasks):
            if reach != "own" or task == gate:
                readable += [*(experts.detach() if reach != "all" and task != gate else experts)]
        weights = torch.softmax(gate_logits, dim=1)
        mixed.append(sum(weights[:, k, None] * h for k, h in enumerate(readable)))
    return torch.stack(mixed)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("reach", REACHES)
def test_mix_and_its_gradients_are_the_definitions(sizes, reach):
    leaves = inputs(*sizes, reach=reach)
    ours = mix_of_one(*leaves, reach)
    expected = by_definition(*leaves, reach)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    ours_grads, expected_grads = (
        torch.autograd.grad(out, leaves, direction, materialize_grads=True)
        for out in (ours, expected)
    )
    for mine, theirs in zip(ours_grads, expected_grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_another_number_of_gates_than_tasks():
    leaves = inputs(2, 3, 2, num_gates=1)
    ours, expected = (f(*leaves, "all") for f in (mix_of_one, by_definition))
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.gradcheck(lambda *x: mix_of_one(*x, "all"), leaves)


@pytest.mark.parametrize("reach", REACHES)
def test_every_gate_gives_its_own_handle_of_the_shared_experts_its_gradient(reach):
    logits, shared, tasks = inputs(2, 3, 2, reach=reach)
    handles = [shared.detach().clone().requires_grad_() for _ in range(3)]
    apart = mix(logits.softmax(dim=-1), handle(torch.stack(handles)), tasks, reach)
    together = mix_of_one(logits, shared, tasks, reach)
    assert torch.equal(apart, together)
    direction = torch.randn_like(apart)
    for gate, own in enumerate(handles):
        one = torch.zeros_like(direction)
        one[gate] = direction[gate]
        wanted = torch.autograd.grad(together, shared, one, retain_graph=True)[0]
        found = torch.autograd.grad(apart, own, direction, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_a_gate_gives_other_tasks_experts_exactly_nothing(gate):
    logits, shared, tasks = inputs(2, 3, 2)
    mix_of_one(logits, shared, tasks, "forward")[gate].sum().backward()
    assert (shared.grad != 0).all()
    for owner in range(3):
        assert ((tasks.grad[owner] != 0) == (owner == gate)).all()


def test_mix_of_equal_experts_is_that_expert():
    torch.manual_seed(0)
    expert = torch.randn(B, H)
    mixed = mix_of_one(torch.randn(2, B, 3), expert[None], expert.expand(2, 1, B, H), "forward")
    torch.testing.assert_close(mixed, expert.expand(2, B, H))


@pytest.mark.parametrize("reach", REACHES)
def test_a_gate_may_leave_the_shared_gradient_in_factors(reach):
    logits, shared, tasks = inputs(2, 3, 2, reach=reach)
    handles = shared.detach().expand(3, -1, -1, -1).clone().requires_grad_()
    leaves, gates = [handles, logits, tasks], []
    weights = logits.softmax(dim=-1)
    whole, factored = (mix(weights, handle(handles, g), tasks, reach) for g in (None, gates))
    direction = torch.randn_like(whole)
    wanted, found = (
        torch.autograd.grad(mixed, leaves, direction, retain_graph=True)
        for mixed in (whole, factored)
    )
    (left,) = gates
    assert (found[0] == 0).all()
    product = left.weights.transpose(1, 2).unsqueeze(-1) * left.mixture.unsqueeze(1)
    torch.testing.assert_close(product, wanted[0])
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sizes", [(1,), (2, 3)])
def test_sums_by_products_are_those_term_by_term(sizes: tuple[int, ...]) -> None:
    """As a GPU makes those of many experts."""
    torch.manual_seed(0)
    groups = [torch.randn(size, 5, 4) for size in sizes]
    weights = torch.rand(3, 5, sum(sizes))
    expected = torch.einsum("nbk,kbh->nbh", weights, torch.cat(groups))
    torch.testing.assert_close(_sums_by_products(weights, groups), expected)
    torch.testing.assert_close(weighted_sums(weights, groups), expected)
