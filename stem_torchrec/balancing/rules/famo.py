"""FAMO: all losses fall at one rate, learned from how they fell."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.adam import adam_state, adam_step
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import softmax_over
from stem_torchrec.nn.options import MAX_FACTOR, Options

EPSILON = 1e-8


@dataclass(frozen=True)
class FamoOptions(Options):
    """Settings of ``famo``.

    Attributes:
        lr: learning rate of Adam on the logits.
        logit_decay: γ >= 0, the pull of the logits to 0.
    """

    lr: Annotated[float, Gt(0), Le(MAX_FACTOR), Doc("learning rate of what the rule learns")] = (
        0.025
    )
    logit_decay: Annotated[float, Ge(0), Le(MAX_FACTOR), Doc("pull of the logits to 0")] = 1e-3


class FamoRule(Rule[FamoOptions]):
    """α_t = c z_t / L_t with z = softmax(w) over the active tasks and c = 1 / Σ_t z_t / L_t.

    Liu et al. (NeurIPS 2023); the multipliers sum to 1. w descends, by Adam, along
    the derivative of Σ_t z_t δ_t, with δ_t = log L_t before minus log L_t after the model's step.
    The paper computes the losses of the same batch again for that; here L_t after is the loss of
    the task's next batch, which costs nothing and adds the noise from batch to batch to δ.

    State: ``logits`` w and ``losses`` of the task's last step (0: none yet), (T,) float64, and
    Adam's.
    """

    name = "famo"
    options_type = FamoOptions
    needs_losses = True
    needs_gram = False

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """w = 0 and no loss seen."""
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        return {"logits": zeros, "losses": zeros.clone(), **adam_state(num_tasks, device)}

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α of the w that this step's losses give, and the state."""
        _, losses, active = situation
        learned = self._learned(losses, active, state)
        shares = softmax_over(learned["logits"], active) / (losses + EPSILON)
        return shares / shares.sum(), {**learned, "losses": losses}

    def _learned(self, losses: Tensor, active: Tensor, state: State) -> State:
        """w and Adam's state after a step of the tasks that have a loss from before."""
        seen = active & (state["losses"] > 0)
        fall = torch.log(state["losses"] + EPSILON) - torch.log(losses + EPSILON)
        shares = softmax_over(state["logits"], seen)
        gradient = shares * (fall - (shares * fall).sum())
        gradient = gradient + self.options.logit_decay * state["logits"]
        logits, adam = adam_step(state["logits"], gradient, state, self.options.lr)
        moved = {"logits": logits, **adam}
        return {name: torch.where(seen, value, state[name]) for name, value in moved.items()}
