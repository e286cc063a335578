"""IMTL-G: the combined gradient has the same projection on every task's."""

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import cosines, gradient_norms
from stem_torchrec.balancing.eigen import spectrum
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

# Eigenvalues below this share of the largest are what rounding of a float32 Gram leaves of a zero.
ZERO_SHARE = 1e-6


class ImtlGRule(Rule[Options]):
    """α with Σα = 1 and ⟨Σ_s α_s g_s, g_t⟩ / ‖g_t‖ the same for every task; may be negative.

    Liu et al. (ICLR 2021, "Towards Impartial Multi-task Learning", section 3.1), in the variables
    y_t = α_t n_t, in which the condition reads C y = const · 1 with the cosine matrix C. Gradients
    that depend on each other have the solution of least ‖y‖, by the pseudo-inverse. Where no α
    fulfils it with a sum other than 0 (two gradients exactly against each other), α = 1/K.
    """

    name = "imtl_g"

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        gram, _, active = situation
        values, vectors = spectrum(cosines(gram))
        kept = values > ZERO_SHARE * values.max()
        inverse = torch.where(kept, values, torch.inf).reciprocal()
        scaled = vectors @ (inverse * (active.to(gram.dtype) @ vectors))
        norms = gradient_norms(gram)
        found = torch.where(active, scaled, 0.0) / torch.where(active, norms, 1.0)
        total = found.sum()
        solved = total.abs() > ZERO_SHARE * found.abs().sum()
        equal = 1.0 / active.sum().clamp_min(1)
        return torch.where(solved, found / torch.where(solved, total, 1.0), equal), state
