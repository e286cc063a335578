"""MGDA: the exact min-norm weights of every step."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.cosine import gradient_norms
from stem_torchrec.balancing.min_norm import min_norm_weights
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options


@dataclass(frozen=True)
class MgdaOptions(Options):
    """Settings of ``mgda``."""

    normalization: Annotated[
        Literal["none", "l2", "loss", "loss+"], Doc("what each gradient is divided by")
    ] = "none"


class MgdaRule(Rule[MgdaOptions]):
    """α = λ, the weights of the point of least norm in the hull of the gradients; they sum to 1.

    Désidéri (C. R. Acad. Sci., 2012) and Sener & Koltun (NeurIPS 2018). As in the latter's
    experiments, ``normalization`` divides each gradient by a scale before λ is found, and λ
    multiplies the gradients as they are: ``none`` 1, ``l2`` the norm, ``loss`` the task's loss,
    ``loss+`` loss times norm. Unlike there, λ is exact (no Frank-Wolfe iterations to a tolerance).
    """

    name = "mgda"
    options_type = MgdaOptions

    def __init__(self, options: MgdaOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self.needs_losses = self.options.normalization in ("loss", "loss+")

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) λ."""
        gram, losses, active = situation
        scale = torch.ones_like(losses)
        if self.needs_losses:
            scale = scale * losses.clamp_min(torch.finfo(torch.float32).tiny)
        if self.options.normalization in ("l2", "loss+"):
            scale = scale * gradient_norms(gram)
        inverse = torch.where(active, scale, torch.inf).reciprocal()
        scaled = gram * inverse.unsqueeze(0) * inverse.unsqueeze(1)
        return min_norm_weights(scaled, active), state
