"""The gate of STEM: every expert forward, its own and the shared backward."""

import pytest
import torch

from stem_torchrec.layers.gates import mix, readable_experts

M_S, T, M_T, B, H = 2, 3, 2, 5, 4


def experts():
    torch.manual_seed(0)
    return (
        torch.randn(M_S, B, H, requires_grad=True),
        torch.randn(T, M_T, B, H, requires_grad=True),
    )


@pytest.mark.parametrize("task", [None, 0, 1, 2])
def test_all_experts_are_read_in_one_order(task):
    shared, tasks = experts()
    expected = torch.cat([shared, tasks.reshape(T * M_T, B, H)])
    assert torch.equal(readable_experts(shared, tasks, task), expected)


@pytest.mark.parametrize("task", [None, 0, 1, 2])
def test_gradients_reach_shared_and_own_experts_alone(task):
    shared, tasks = experts()
    readable_experts(shared, tasks, task).sum().backward()
    assert (shared.grad == 1).all()
    for owner in range(T):
        assert (tasks.grad[owner] == (1 if task in (None, owner) else 0)).all()


def test_no_shared_and_no_own_experts():
    shared, tasks = experts()
    assert readable_experts(shared[:0], tasks, 1).shape == (T * M_T, B, H)
    assert readable_experts(shared, tasks[:, :0], 1).shape == (M_S, B, H)


def test_mix_is_the_softmax_weighted_sum():
    torch.manual_seed(0)
    logits, values = torch.randn(B, 6), torch.randn(6, B, H)
    weights = torch.softmax(logits, dim=1)
    expected = torch.einsum("bk,kbh->bh", weights, values)
    torch.testing.assert_close(mix(logits, values), expected)


def test_mix_of_equal_experts_is_that_expert():
    torch.manual_seed(0)
    expert = torch.randn(B, H)
    torch.testing.assert_close(mix(torch.randn(B, 6), expert.expand(6, B, H)), expert)
