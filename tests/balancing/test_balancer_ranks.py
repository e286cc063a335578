"""A balancer under DistributedDataParallel: two ranks equal one process with both batches."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stem_torchrec.balancing import Balancer
from tests.balancing.every_rule import EVERY_RULE
from tests.balancing.test_balancer import NUM_TASKS, Net, batch

STEPS = 3
RULES = ("multi_balance", "mgda@loss", "pcgrad", "cagrad", "famo", "upgrad")


class Trained(torch.nn.Module):
    """What is wrapped: one forward that gives the losses."""

    def __init__(self, balancer: Balancer) -> None:
        super().__init__()
        self.net, self.balancer = Net(), balancer

    def forward(self, x, y):
        losses = self.net.losses(self.balancer.fork(self.net.encoder(x)), y)
        self.balancer.observe(losses)
        return sum(losses)


def train(wrapped, balancer: Balancer, batches) -> tuple[list, list]:
    """Multipliers and gradient norms of each step, and the weights after all of them."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    found = []
    for x, y in batches:
        optimizer.zero_grad()
        wrapped(x, y).backward()
        optimizer.step()
        norms = balancer.metrics().get("gradient_norm", torch.zeros(0))
        found.append(torch.cat([balancer.weights, norms]))
    return found, [parameter.detach().clone() for parameter in wrapped.parameters()]


def joined(step: int):
    return batch(step, rows=16)


def halves(ranks, rule: str):
    """Each rank trains on half of the rows."""
    group = dist.new_group()
    balancer = Balancer(EVERY_RULE[rule](NUM_TASKS), NUM_TASKS, process_group=group)
    wrapped = DistributedDataParallel(Trained(balancer))
    rows = slice(8 * ranks.rank, 8 * ranks.rank + 8)
    batches = [tuple(part[rows] for part in joined(step)) for step in range(STEPS)]
    return train(wrapped, balancer, batches)


@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_equal_one_process(pair, rule):
    balancer = Balancer(EVERY_RULE[rule](NUM_TASKS), NUM_TASKS)
    weights, parameters = train(Trained(balancer), balancer, [joined(s) for s in range(STEPS)])
    results = pair.run(halves, rule)
    for found, trained in results:
        torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trained, parameters, rtol=1e-4, atol=1e-6)
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert torch.equal(one, other), "multipliers differ between ranks"
