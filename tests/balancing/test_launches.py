"""How many operations balancing takes: each is a launch on a GPU, and most are on T numbers.

Counted are those that compute or copy; views and allocations launch nothing.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stem_torchrec.balancing.applied_rule import AppliedRule
from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.balancing.gram import ExpertsGram, Gram, PooledGram
from stem_torchrec.balancing.rules.multi_balance import MultiBalanceRule
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.stem_net import StemNet, StemNetOptions

NOTHING = {"detach", "empty", "empty_like", "new_empty", "_unsafe_view", "_local_scalar_dense"}
"""Operations that are not views by their signature, and launch nothing either."""

ROWS, DIM, FEATURES = 32, 4, ("user", "item")


class Launches(TorchDispatchMode):
    """Counts the operations inside, those of a backward too."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [result.alias_info for result in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        self.count += not is_view and func.overloadpacket.__name__ not in NOTHING
        return func(*args, **(kwargs or {}))


def of_a_step(num_tasks: int, gram: Gram | None) -> int:
    """Operations of STEM-Net's forward and backward and of what follows in a train step."""
    torch.manual_seed(0)
    tasks = tuple(f"t{task}" for task in range(num_tasks))
    options = StemNetOptions(expert_widths=(8, 8, 8), gate_widths=(4, 4), tower_widths=(4,))
    model = StemNet(Inputs(dict.fromkeys(FEATURES, "user"), DIM, tasks), options)
    fork = None
    if gram is not None:
        model.fork = fork = BalancedFork(MultiBalanceRule(), gram, num_tasks=num_tasks)
    pooled = {
        owner: torch.randn(ROWS, len(names) * DIM, requires_grad=True)
        for owner, names in model.owners.items()
    }
    weights = [*pooled.values(), *model.parameters()]
    with Launches() as launches:
        loss = model(pooled, torch.empty(ROWS, 0)).square().mean(dim=0).sum()
        torch.autograd.grad(loss, weights)
        if fork is not None:
            fork.settle(torch.tensor(False))
    return launches.count


@pytest.mark.parametrize("num_tasks", [2, 8])
def test_the_rule_and_its_bookkeeping(num_tasks: int) -> None:
    """A bound on the launches of a GPU: 158 before pairs were compared and steps settled."""
    applied = AppliedRule(MultiBalanceRule(), num_tasks)
    gram, left_out = torch.eye(num_tasks), torch.tensor(False)
    with Launches() as launches:
        applied.set_from_ranks(gram)
        applied.settle(left_out)
    assert launches.count <= 77
    assert applied.state_steps.tolist() == [1] * num_tasks


@pytest.mark.parametrize("num_tasks", [2, 8])
@pytest.mark.parametrize(
    ("gram", "most"), [(ExpertsGram(), 86), (PooledGram(len(FEATURES) * DIM, 16), 96)]
)
def test_a_balanced_step_over_one_with_equal_weights(gram: Gram, most: int, num_tasks: int) -> None:
    """A bound on the launches of a GPU, no more of them for more tasks."""
    assert of_a_step(num_tasks, gram) - of_a_step(num_tasks, None) <= most


def test_views_and_allocations_are_not_counted() -> None:
    values: Tensor = torch.ones(2, 3)
    with Launches() as launches:
        values.t().reshape(3, 2)[0].unsqueeze(0).expand(4, -1)
        torch.empty(3)
    assert launches.count == 0
    with Launches() as launches:
        values.add_(1).sum()
    assert launches.count == 2
