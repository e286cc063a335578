"""STCH: the gradient of a smooth maximum of the losses."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import softmax_over
from stem_torchrec.nn.options import MAX_FACTOR, Options


@dataclass(frozen=True)
class StchOptions(Options):
    """Settings of ``stch``.

    Attributes:
        mu: μ > 0; towards 0 the task of the largest loss alone counts.
    """

    mu: Annotated[
        float, Gt(0), Le(MAX_FACTOR), Doc("smoothing; towards 0 the largest loss alone counts")
    ] = 0.1


class StchRule(Rule[StchOptions]):
    """α_t = (1/K) softmax(L_t / (K μ)): the gradient of μ log Σ_t exp(L_t / (K μ)), K active tasks.

    Smooth Tchebycheff scalarization of Lin et al. (ICML 2024), with equal preferences 1/K
    and the ideal point 0, which no mean log loss is below. The multipliers sum to 1/K.
    """

    name = "stch"
    options_type = StchOptions
    needs_losses = True
    needs_gram = False

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        preference = situation.active.sum().clamp_min(1).to(situation.losses.dtype).reciprocal()
        exponents = preference * situation.losses / self.options.mu
        return preference * softmax_over(exponents, situation.active), state
