"""Uncertainty weighting: a learned variance per task, from the losses alone."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.adam import adam_state, adam_step
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import MAX_FACTOR, Options


@dataclass(frozen=True)
class UncertaintyOptions(Options):
    """Settings of ``uncertainty``.

    Attributes:
        lr: learning rate of Adam on the log-variances.
    """

    lr: Annotated[float, Gt(0), Le(MAX_FACTOR), Doc("learning rate of what the rule learns")] = (
        0.025
    )


class UncertaintyRule(Rule[UncertaintyOptions]):
    """α_t = ½ e^(-s_t), with s_t learned on Σ_t ½ e^(-s_t) L_t + ½ s_t.

    Kendall, Gal & Cipolla (CVPR 2018; s = log σ²). s_t approaches log L_t, and so α_t L_t one half
    for every task. s has an Adam of its own here, on the losses of the global
    batch: the same on all ranks.

    State: ``log_variance`` s (T,) float64, and Adam's.
    """

    name = "uncertainty"
    options_type = UncertaintyOptions
    needs_losses = True
    needs_gram = False

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """s = 0."""
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        return {"log_variance": zeros, **adam_state(num_tasks, device)}

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α of the present s, and the next s."""
        log_variance = state["log_variance"]
        weights = 0.5 * torch.exp(-log_variance)
        gradient = 0.5 - weights * situation.losses
        moved, adam = adam_step(log_variance, gradient, state, self.options.lr)
        return weights, {"log_variance": moved, **adam}
