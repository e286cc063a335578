"""IMTL-L: a learned scale per task that makes all scaled losses alike."""

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
class ImtlLOptions(Options):
    """Settings of ``imtl_l``.

    Attributes:
        lr: learning rate of Adam on the log-scales.
    """

    lr: Annotated[float, Gt(0), Le(MAX_FACTOR), Doc("learning rate of what the rule learns")] = (
        0.025
    )


class ImtlLRule(Rule[ImtlLOptions]):
    """α_t = e^(s_t), with s_t learned on Σ_t e^(s_t) L_t - s_t.

    Liu et al. (ICLR 2021, "Towards Impartial Multi-task Learning", section 3.2). s_t approaches
    -log L_t, and so α_t L_t one for every task. s has an Adam of its own here, on the losses of
    the global batch: the same on all ranks.

    State: ``log_scale`` s (T,) float64, and Adam's.
    """

    name = "imtl_l"
    options_type = ImtlLOptions
    needs_losses = True
    needs_gram = False

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """s = 0."""
        zeros = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        return {"log_scale": zeros, **adam_state(num_tasks, device)}

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α of the present s, and the next s."""
        log_scale = state["log_scale"]
        scale = torch.exp(log_scale)
        moved, adam = adam_step(log_scale, scale * situation.losses - 1.0, state, self.options.lr)
        return scale, {"log_scale": moved, **adam}
