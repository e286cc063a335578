"""MGDA: the exact min-norm weights of every step."""

from typing import Literal, get_args

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import gradient_norms
from stem_torchrec.balancing.min_norm import min_norm_weights
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.errors import UserError

Normalization = Literal["none", "l2", "loss", "loss+"]


class Mgda(Rule):
    """α = λ, the weights of the point of least norm in the hull of the gradients; they sum to 1.

    Désidéri (C. R. Acad. Sci., 2012) and Sener & Koltun (NeurIPS 2018). As in the latter's
    experiments, ``normalization`` divides each gradient by a scale before λ is found, and λ
    multiplies the gradients as they are: ``none`` 1, ``l2`` the norm, ``loss`` the task's loss,
    ``loss+`` loss times norm. Unlike there, λ is exact (no Frank-Wolfe iterations to a tolerance).

    Raises:
        UserError: an unknown normalization.
    """

    def __init__(self, normalization: Normalization = "none") -> None:
        if normalization not in get_args(Normalization):
            allowed = ", ".join(get_args(Normalization))
            raise UserError(f"balance.normalization: {normalization!r}; allowed: {allowed}")
        self._normalization = normalization

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) λ."""
        gram, losses, active = situation
        scale = torch.ones_like(losses)
        if self._normalization in ("loss", "loss+"):
            scale = scale * losses.clamp_min(torch.finfo(torch.float32).tiny)
        if self._normalization in ("l2", "loss+"):
            scale = scale * gradient_norms(gram)
        inverse = torch.where(active, scale, torch.inf).reciprocal()
        scaled = gram * inverse.unsqueeze(0) * inverse.unsqueeze(1)
        return min_norm_weights(scaled, active), state
