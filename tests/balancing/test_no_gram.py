"""Rules that read no Gram matrix: none is made, and what they leave out is the same."""

import pytest
import torch

from stem_torchrec.balancing import Balancer
from stem_torchrec.balancing.gradients import Whole
from tests.balancing.every_rule import EVERY_RULE
from tests.balancing.test_balancer import NUM_TASKS, Net, batch, step

WITHOUT = sorted(name for name in EVERY_RULE if not EVERY_RULE[name](2).needs_gram)


def test_these_are_they():
    assert WITHOUT == ["dwa", "famo", "imtl_l", "rlw", "static", "stch", "uncertainty"]


@pytest.mark.parametrize("name", WITHOUT)
def test_no_products_and_no_figures_of_gradients(name, monkeypatch):
    monkeypatch.delattr(Whole, "inner_products")
    net, (x, y) = Net(), batch()
    balancer = Balancer(EVERY_RULE[name](NUM_TASKS), NUM_TASKS)
    step(net, balancer, x, y)
    assert balancer.metrics().keys() == {"weight", "fallback"}
    assert balancer.metrics()["fallback"] == 0
    assert not balancer.cosines.any()


@pytest.mark.parametrize("name", WITHOUT)
def test_task_without_a_loss_or_with_a_bad_gradient_is_left_out(name):
    balancer = Balancer(EVERY_RULE[name](NUM_TASKS), NUM_TASKS)
    shared = torch.ones(2, 2, requires_grad=True)
    balancer.observe(torch.tensor([0.5, 0.4, 0.3]))
    first, _, third = balancer.fork(shared)
    state = {key: value.clone() for key, value in balancer.named_buffers()}
    (first.sum() + third.sum() * float("inf")).backward()
    assert balancer.weights[0] > 0
    assert balancer.weights[1:].tolist() == [0.0, 0.0]
    assert (shared.grad == balancer.weights[0]).all()
    for key, value in state.items():
        if key != "multipliers":
            assert torch.equal(getattr(balancer, key)[1:], value[1:]), key


@pytest.mark.parametrize("name", ["famo", "dwa", "uncertainty"])
def test_saved_and_loaded_goes_on_alike(name):
    net, balancer = Net(), Balancer(EVERY_RULE[name](NUM_TASKS), NUM_TASKS)
    for seed in range(3):
        step(net, balancer, *batch(seed))
    other = Balancer(EVERY_RULE[name](NUM_TASKS), NUM_TASKS)
    other.load_state_dict(balancer.state_dict())
    for seed in range(3, 6):
        for one in (balancer, other):
            step(net, one, *batch(seed))
        assert torch.equal(other.weights, balancer.weights)
