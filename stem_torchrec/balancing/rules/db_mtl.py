"""DB-MTL: gradients of the logarithms of the losses, all made as long as the longest."""

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import gradient_norms
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

EPSILON = 1e-8


class DbMtlRule(Rule[Options]):
    """α_t = max_s ‖h_s‖ / ‖h_t‖ / L_t, with h_t = g_t / L_t the gradient of log L_t.

    Dual-balancing of Lin et al. (2023, arXiv 2308.12029). The paper's moving average of
    the gradients, for which every task would need a copy of them, is left out (its β = 0).
    """

    name = "db_mtl"
    needs_losses = True

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        gram, losses, active = situation
        losses = losses + EPSILON
        lengths = gradient_norms(gram) / losses
        return lengths.max() / torch.where(active, lengths, 1.0) / losses, state
