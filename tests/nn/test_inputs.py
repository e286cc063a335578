"""Streams side by side: the values and gradients of a stack, and whose memory they are in."""

import pytest
import torch

from stem_torchrec.nn.inputs import stacked

VALUES = torch.arange(60.0).view(5, 12)


def apart():
    return [VALUES[:, 4 * k : 4 * k + 4].clone() for k in range(3)]


@pytest.mark.parametrize(
    ("parts", "is_copy"),
    [
        (lambda: VALUES.split(4, dim=1), False),
        (lambda: torch.stack(apart()).unbind(0), False),
        (apart, True),
        (lambda: VALUES.split(4, dim=1)[::-1], True),  # memory cannot be read backwards
        (lambda: [VALUES[:, :4], VALUES[:, 4:8], VALUES[:, 6:10]], True),  # uneven
        (lambda: [VALUES[:, :4], VALUES.clone()[:, 4:8]], True),  # of two memories
        (lambda: [VALUES[:, :4]] * 2, True),
        (lambda: [VALUES[:4, :4], VALUES.view(10, 6)[1:5, :4]], True),  # of other strides
        (lambda: [VALUES[:, :4]], True),
    ],
)
def test_stacked_is_a_stack(parts, is_copy):
    leaves = [part.detach().requires_grad_() for part in parts()]
    found, expected = stacked(leaves), torch.stack(leaves)
    assert torch.equal(found, expected)
    assert (found.data_ptr() != leaves[0].data_ptr()) is is_copy
    outgoing = torch.randn_like(expected)
    for gradient, wanted in zip(
        torch.autograd.grad(found, leaves, outgoing), outgoing, strict=True
    ):
        assert torch.equal(gradient, wanted)
