"""Clipping and decay of the pooled features' gradient, against the definition."""

import pytest
import torch

from stem_torchrec.distributed.pooled_gradient import PooledGradient

B, WIDTH = 6, 5


def pooled():
    torch.manual_seed(0)
    return {name: torch.randn(B, WIDTH, requires_grad=True) for name in ("shared", "like")}


def gradients(layer, features, outgoing):
    return {name: layer(outgoing[name], value) for name, value in features.items()}


@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("world_size", [1, 4])
def test_gradient(bound, decay, world_size):
    features = pooled()
    outgoing = {name: 3 * torch.randn(B, WIDTH) for name in features}
    found = gradients(PooledGradient(bound, decay, world_size), features, outgoing)
    for name, value in features.items():
        expected = outgoing[name]
        if bound is not None:
            # A rank's gradient is world_size times its share of the global one.
            expected = expected.clamp(-bound * world_size, bound * world_size)
            assert (expected != outgoing[name]).any()
        torch.testing.assert_close(found[name], expected + decay / B * value.detach())


def test_decay_is_the_gradient_of_the_penalty():
    features, decay = pooled(), 0.7
    zeros = {name: torch.zeros(B, WIDTH) for name in features}
    found = gradients(PooledGradient(None, decay, 1), features, zeros)
    sum(decay / 2 * value.square().sum(1).mean() for value in features.values()).backward()
    for name, value in features.items():
        torch.testing.assert_close(found[name], value.grad)
