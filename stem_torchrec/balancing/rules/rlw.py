"""RLW: random weights, the yardstick for rules that weigh by losses."""

import torch
from torch import Tensor

from stem_torchrec.balancing.from_host import from_host
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import softmax_over
from stem_torchrec.nn.options import Options


class RlwRule(Rule[Options]):
    """α = softmax(x) over the active tasks, x_t ~ N(0, 1) anew in every step; they sum to 1.

    Random Loss Weighting of Lin et al. (TMLR 2022, algorithm 2). x is drawn on the CPU from a
    generator seeded by ``seed`` and the step, so that all ranks, and a resumed run, draw the same.
    """

    name = "rlw"
    needs_gram = False
    recordable = False

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        active = situation.active
        generator = torch.Generator().manual_seed(self.seed + step)
        drawn = torch.randn(active.shape[0], generator=generator, dtype=torch.float64)
        return softmax_over(from_host(drawn, active.device), active), state
