"""FairGrad: every task's gain is worth the more, the smaller it is."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.fair_weights import fair_weights
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options


@dataclass(frozen=True)
class FairGradOptions(Options):
    """Settings of ``fairgrad``.

    Attributes:
        fairgrad_alpha: α of α-fairness: 1 is proportional fairness, more is nearer to max-min.
    """

    fairgrad_alpha: Annotated[
        float, Ge(0.5), Le(5), Doc("fairness: 1 proportional, large nearer to max-min")
    ] = 2.0


class FairGradRule(Rule[FairGradOptions]):
    """The multipliers are w > 0 with G w = w^(-1/α), entry by entry.

    Ban & Ji (ICML 2024, "Fair Resource Allocation in Multi-Task Learning"). Nothing is
    divided by a norm: gradients c times as long have multipliers c^(-2α / (1 + α)) times as large.
    """

    name = "fairgrad"
    options_type = FairGradOptions

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) w."""
        gram, _, active = situation
        return fair_weights(gram, active, 1.0 / self.options.fairgrad_alpha), state
