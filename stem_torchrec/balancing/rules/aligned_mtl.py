"""Aligned-MTL: the mean of the gradients after all their principal directions are made alike."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.eigen import spectrum
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

# Eigenvalues below this share of the largest are what rounding of a float32 Gram leaves of a zero.
ZERO_SHARE = 1e-6


@dataclass(frozen=True)
class AlignedMtlOptions(Options):
    """Settings of ``aligned_mtl``.

    Attributes:
        scale_mode: the eigenvalue that all get: the smallest, the median or the mean (``rmse``).
    """

    scale_mode: Annotated[
        Literal["min", "median", "rmse"], Doc("eigenvalue that all directions get")
    ] = "min"


class AlignedMtlRule(Rule[AlignedMtlOptions]):
    """α = √σ V Σ^(-½) Vᵀ w with w_t = 1/K, for the Gram G = V Σ Vᵀ; may be negative.

    Senushkin et al. (CVPR 2023, algorithm 1). σ is the smallest eigenvalue of G that is not 0, or
    what ``scale_mode`` says.
    """

    name = "aligned_mtl"
    options_type = AlignedMtlOptions

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        gram, _, active = situation
        values, vectors = spectrum(gram)
        kept = values > ZERO_SHARE * values.max()
        mean = active.to(gram.dtype) / active.sum().clamp_min(1)
        shrunk = torch.where(kept, self._scale(values, kept) / values, 0.0).sqrt()
        return vectors @ (shrunk * (mean @ vectors)), state

    def _scale(self, values: Tensor, kept: Tensor) -> Tensor:
        """() σ of the kept eigenvalues."""
        if self.options.scale_mode == "min":
            return torch.where(kept, values, torch.inf).min()
        if self.options.scale_mode == "rmse":
            return torch.where(kept, values, 0.0).sum() / kept.sum().clamp_min(1)
        largest_first = torch.where(kept, values, -torch.inf).sort(descending=True).values
        # Of an even number the smaller of the two in the middle.
        middle = (kept.sum() // 2).clamp_max(len(values) - 1)
        return largest_first.gather(0, middle.unsqueeze(0)).squeeze(0)
