"""DWA: more weight for the tasks whose loss falls more slowly."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import softmax_over
from stem_torchrec.nn.options import MAX_FACTOR, Options


@dataclass(frozen=True)
class DwaOptions(Options):
    """Settings of ``dwa``.

    Attributes:
        temperature: τ > 0; the larger, the more alike the weights.
        window: steps whose losses are averaged; the paper's is an epoch.
    """

    temperature: Annotated[
        float, Gt(0), Le(MAX_FACTOR), Doc("the larger, the more alike the weights")
    ] = 2.0
    window: Annotated[int, Ge(1), Le(10**9), Doc("steps in an average of the losses")] = 100


class DwaRule(Rule[DwaOptions]):
    """α_t = K softmax(r_t / τ), r_t the ratio of the last two averages of the task's loss.

    Dynamic Weight Average of Liu, Johns & Davison (CVPR 2019), K active tasks. A task
    has r_t = 1 until it has two averages. Averages are over ``window`` steps in which the task
    took part, not over epochs: a large set may be read once.

    State, all (T,): ``sum`` of the losses of the window under way and its ``steps``, the averages
    ``newer`` and ``older``, and how many ``windows`` are done.
    """

    name = "dwa"
    options_type = DwaOptions
    needs_losses = True
    needs_gram = False

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """No loss seen."""
        names = {"sum": torch.float64, "newer": torch.float64, "older": torch.float64}
        names |= {"steps": torch.int64, "windows": torch.int64}
        return {k: torch.zeros(num_tasks, dtype=dtype, device=device) for k, dtype in names.items()}

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α from the averages before this step, and the next averages."""
        active = situation.active
        known = (state["windows"] >= 2) & (state["older"] > 0)
        rates = torch.where(known, state["newer"] / torch.where(known, state["older"], 1.0), 1.0)
        weights = active.sum() * softmax_over(rates / self.options.temperature, active)

        total, steps = state["sum"] + situation.losses, state["steps"] + 1
        full = steps == self.options.window
        return weights, {
            "sum": torch.where(full, 0.0, total),
            "steps": torch.where(full, 0, steps),
            "newer": torch.where(full, total / steps, state["newer"]),
            "older": torch.where(full, state["newer"], state["older"]),
            "windows": state["windows"] + full,
        }
