"""Adam on a rule's own parameters, one per task: plain tensors that go into the rule's state.

T tasks.
"""

import torch
from torch import Tensor

from stem_torchrec.balancing.rule import State

BETA_MEAN, BETA_SQUARE = 0.9, 0.999
EPSILON = 1e-8


def adam_state(num_tasks: int, device: torch.device | None) -> State:
    """``mean`` and ``square`` (T,) float64 and ``steps`` (T,) int64, all 0."""
    zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
    return {"mean": zeros, "square": zeros.clone(), "steps": zeros.to(torch.int64)}


def adam_step(values: Tensor, gradient: Tensor, state: State, lr: float) -> tuple[Tensor, State]:
    """(T,) values after one step of Adam (Kingma & Ba, ICLR 2015, algorithm 1), and its state.

    As ``torch.optim.Adam``, but every task counts its own steps: one that is left out of a step
    goes on later as if there had been none.
    """
    steps = state["steps"] + 1
    mean = BETA_MEAN * state["mean"] + (1 - BETA_MEAN) * gradient
    square = BETA_SQUARE * state["square"] + (1 - BETA_SQUARE) * gradient**2
    counted = steps.to(values.dtype)
    unbiased = mean / (1 - BETA_MEAN**counted)
    size = (square / (1 - BETA_SQUARE**counted)).sqrt() + EPSILON
    return values - lr * unbiased / size, {"mean": mean, "square": square, "steps": steps}
