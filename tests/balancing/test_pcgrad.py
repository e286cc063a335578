"""PCGrad on the Gram matrix: against gradients that are really projected, and against TorchJD."""

import pytest
import torch

from stem_torchrec.balancing.rules.pcgrad import PcGradRule, project_conflicts, random_orders
from tests.balancing.grams import KINDS, apply, gradients, gram_of, situation_of


def projected_gradients(rows: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """(K,) Σ_i g_i^PC, algorithm 1 on the gradients (T, K) themselves."""
    total = torch.zeros_like(rows[0])
    for task, order in enumerate(orders.tolist()):
        own = rows[task].clone()
        for other in order:
            dot = own @ rows[other]
            if other != task and dot < 0:
                own -= dot / (rows[other] @ rows[other]) * rows[other]
        total += own
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 20])
def test_combines_the_projected_gradients(num_tasks, kind):
    rows = gradients(kind, num_tasks, 40).double()
    orders = random_orders(num_tasks, seed=3)
    active = torch.ones(num_tasks, dtype=torch.bool)
    found = project_conflicts(rows @ rows.T, active, orders)
    expected = projected_gradients(rows, orders)
    torch.testing.assert_close(found @ rows, expected, rtol=1e-9, atol=1e-9)


def test_gradient_never_meets_itself():
    """Two projections turn the first gradient by 120 degrees, against what it was."""
    angles = torch.tensor([0.0, 150.0, 210.0], dtype=torch.float64).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    orders = torch.tensor([[1, 2, 0], [0, 1, 2], [0, 1, 2]])
    active = torch.ones(3, dtype=torch.bool)
    found = project_conflicts(rows @ rows.T, active, orders)
    torch.testing.assert_close(found @ rows, projected_gradients(rows, orders))


def test_golden():
    """g = (1, 0) and (-1, 1): each gives up its part against the other."""
    found = apply(PcGradRule(), torch.tensor([[1.0, -1.0], [-1.0, 2.0]])).multipliers
    torch.testing.assert_close(found, torch.tensor([2.0, 1.5]))
    assert apply(PcGradRule(), torch.eye(3)).multipliers.tolist() == [1.0, 1.0, 1.0]


def test_permutation_with_its_order():
    rows = gradients("torn", 6, 20).double()
    orders, shuffle = random_orders(6, seed=0), torch.randperm(6)
    place = torch.argsort(shuffle)
    active = torch.ones(6, dtype=torch.bool)
    before = project_conflicts(rows @ rows.T, active, orders)
    moved = rows[shuffle]
    after = project_conflicts(moved @ moved.T, active, place[orders[shuffle]])
    torch.testing.assert_close(after, before[shuffle])


def test_draws_by_step_and_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    gram = gram_of(gradients("random", 8, 3))
    first = apply(PcGradRule(seed=5), gram, step=7).multipliers
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, apply(PcGradRule(seed=5), gram, step=7).multipliers)
    assert not torch.equal(first, apply(PcGradRule(seed=5), gram, step=8).multipliers)
    assert not torch.equal(first, apply(PcGradRule(seed=6), gram, step=7).multipliers)
    orders = random_orders(8, seed=0)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(8).expand(8, 8))
    assert len({tuple(order) for order in orders.tolist()}) > 1


@pytest.mark.parametrize("num_tasks", [2, 5])
def test_equals_torchjd(num_tasks):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="TorchJD is not installed")
    gram = gram_of(gradients("torn", num_tasks, 4)).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        theirs = torchjd.PCGradWeighting()(gram)
    generator = torch.Generator().manual_seed(11)
    drawn = [torch.randperm(num_tasks, generator=generator) for _ in range(num_tasks)]
    ours = project_conflicts(gram, situation_of(gram).active, torch.stack(drawn))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
