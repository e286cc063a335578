"""Equal weights: the plain sum of the tasks' gradients."""

from torch import Tensor

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options


class EqualRule(Rule[Options]):
    """α_t = 1."""

    name = "equal"

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) ones, exactly."""
        return situation.active.to(situation.gram.dtype), state
