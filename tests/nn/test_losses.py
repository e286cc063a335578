"""The loss of a task is the mean over its labelled samples of all ranks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from stem_torchrec.nn.losses import labelled, task_losses

NAN = float("nan")


def losses_of(logits, labels, weights=None):
    target = labelled(labels, weights)
    return task_losses(logits, target, target.weights.sum(dim=0))


def random_batch(seed, rows=12, tasks=3, null_share=0.4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (rows, tasks), generator=generator).float()
    labels[torch.rand(rows, tasks, generator=generator) < null_share] = NAN
    logits = 3 * torch.randn(rows, tasks, generator=generator)
    return logits, labels, torch.rand(rows, generator=generator) + 0.1


def test_null_labels_have_no_weight():
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    target = labelled(labels, torch.tensor([2.0, 3.0]))
    assert target.labels.tolist() == [[1, 0], [0, 1]]
    assert target.weights.tolist() == [[2, 0], [3, 3]]
    assert labelled(labels, None).weights.tolist() == [[1, 0], [1, 1]]


@given(st.integers(0, 1000), st.booleans())
def test_each_loss_is_the_mean_over_its_labelled_samples(seed, weighted):
    logits, labels, weights = random_batch(seed)
    found = losses_of(logits, labels, weights if weighted else None)
    for task in range(3):
        seen = ~labels[:, task].isnan()
        if not seen.any():
            assert found[task] == 0
            continue
        each = binary_cross_entropy_with_logits(
            logits[seen, task], labels[seen, task], reduction="none"
        )
        mass = weights[seen] if weighted else torch.ones_like(each)
        torch.testing.assert_close(found[task], (mass * each).sum() / mass.sum())


def test_the_gradient_is_the_mean_over_labelled_samples():
    logits, labels, weights = random_batch(1)
    logits.requires_grad_()
    losses_of(logits, labels, weights).sum().backward()
    mass = torch.where(labels.isnan(), 0.0, 1.0) * weights[:, None]
    expected = mass / mass.sum(0) * (logits.detach().sigmoid() - torch.nan_to_num(labels))
    torch.testing.assert_close(logits.grad, expected)
    assert (logits.grad[labels.isnan()] == 0).all()


def test_a_task_without_labels_gives_zero_and_no_gradient():
    logits = torch.randn(4, 2, requires_grad=True)
    losses = losses_of(logits, torch.tensor([[NAN, 1.0]] * 4))
    losses.sum().backward()
    assert losses[0] == 0
    assert (logits.grad[:, 0] == 0).all()
    assert (logits.grad[:, 1] != 0).all()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_the_mean_over_ranks_is_the_loss_of_the_joined_batch(num_ranks):
    parts = [random_batch(seed, rows=4 + 3 * seed) for seed in range(num_ranks)]
    joined = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    targets = [labelled(labels, weights) for _, labels, weights in parts]
    total = torch.stack([target.weights.sum(0) for target in targets]).mean(0)
    local = [task_losses(p[0], t, total) for p, t in zip(parts, targets, strict=True)]
    torch.testing.assert_close(torch.stack(local).mean(0), losses_of(*joined))
