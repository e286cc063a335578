"""The gate of STEM: every expert forward, its own and the shared backward."""

import pytest
import torch

from stem_torchrec.layers.gates import mix

SIZES = [(2, 3, 2), (1, 2, 1), (0, 3, 2), (3, 2, 0), (2, 1, 1)]  # M_s, T, M_t
B, H = 5, 4


def inputs(num_shared, num_tasks, num_own, num_gates=None):
    torch.manual_seed(0)
    num_experts = num_shared + num_tasks * num_own
    shapes = (
        (num_gates or num_tasks, B, num_experts),
        (num_shared, B, H),
        (num_tasks, num_own, B, H),
    )
    return [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]


def mix_of_one(logits, shared, tasks, *, stop_gradient):
    return mix(logits, shared.unsqueeze(0), tasks, stop_gradient=stop_gradient)


def by_definition(logits, shared, tasks, *, stop_gradient):
    """Gate by gate, with ``detach`` on the experts of other tasks."""
    mixed = []
    for gate, gate_logits in enumerate(logits):
        readable = [*shared]
        for task, experts in enumerate(tasks):
            readable += [*(experts.detach() if stop_gradient and task != gate else experts)]
        weights = torch.softmax(gate_logits, dim=1)
        mixed.append(sum(weights[:, k, None] * h for k, h in enumerate(readable)))
    return torch.stack(mixed)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_mix_and_its_gradients_are_the_definitions(sizes, stop_gradient):
    leaves = inputs(*sizes)
    ours = mix_of_one(*leaves, stop_gradient=stop_gradient)
    expected = by_definition(*leaves, stop_gradient=stop_gradient)
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
    ours, expected = (f(*leaves, stop_gradient=False) for f in (mix_of_one, by_definition))
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.gradcheck(lambda *x: mix_of_one(*x, stop_gradient=False), leaves)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_every_gate_gives_its_own_handle_of_the_shared_experts_its_gradient(stop_gradient):
    logits, shared, tasks = inputs(2, 3, 2)
    handles = [shared.detach().clone().requires_grad_() for _ in range(3)]
    apart = mix(logits, torch.stack(handles), tasks, stop_gradient=stop_gradient)
    together = mix_of_one(logits, shared, tasks, stop_gradient=stop_gradient)
    assert torch.equal(apart, together)
    direction = torch.randn_like(apart)
    for gate, handle in enumerate(handles):
        one = torch.zeros_like(direction)
        one[gate] = direction[gate]
        wanted = torch.autograd.grad(together, shared, one, retain_graph=True)[0]
        found = torch.autograd.grad(apart, handle, direction, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_a_gate_gives_other_tasks_experts_exactly_nothing(gate):
    logits, shared, tasks = inputs(2, 3, 2)
    mix_of_one(logits, shared, tasks, stop_gradient=True)[gate].sum().backward()
    assert (shared.grad != 0).all()
    for owner in range(3):
        assert ((tasks.grad[owner] != 0) == (owner == gate)).all()


def test_mix_of_equal_experts_is_that_expert():
    torch.manual_seed(0)
    expert = torch.randn(B, H)
    mixed = mix_of_one(
        torch.randn(2, B, 3), expert[None], expert.expand(2, 1, B, H), stop_gradient=True
    )
    torch.testing.assert_close(mixed, expert.expand(2, B, H))
