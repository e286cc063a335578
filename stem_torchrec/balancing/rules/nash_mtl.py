"""Nash-MTL: the bargaining solution among the tasks."""

from torch import Tensor

from stem_torchrec.balancing.fair_weights import fair_weights
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options


class NashMtlRule(Rule[Options]):
    """α = √‖G‖ w with G w = 1 / w, entry by entry, and ‖G‖ the Frobenius norm; positive.

    Navon et al. (ICML 2022, "Multi-Task Learning as a Bargaining Game"). The product of
    the tasks' gains is the largest. G is divided by its norm, as in the authors' code, so that α
    depends on no common scale; their clipping of the combined gradient to norm 1 is left out. The
    problem, convex in w, is solved by Newton's method instead of a sequence of approximations.
    """

    name = "nash_mtl"

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α."""
        gram, _, active = situation
        size = gram.square().sum().sqrt().sqrt()
        return size * fair_weights(gram, active, 1.0), state
