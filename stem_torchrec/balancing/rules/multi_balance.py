"""MultiBalance: smoothed min-norm weights on the cosine matrix, with smoothed gradient norms."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.cosine import over_norms
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import project_on_simplex
from stem_torchrec.nn.options import MAX_FACTOR, Options


@dataclass(frozen=True)
class MultiBalanceOptions(Options):
    """Settings of ``multi_balance``.

    Attributes:
        gamma: γ in (0, 1].
        rho: ρ >= 0, the pull away from directions that the average conflicts with.
        beta: β > 0, the step; 1 / ‖C‖_∞ (largest absolute row sum) if None.
        matrix: what stands for C, ``cosine`` or ``gram``.
        floor: in [0, 1), the least λ_t as a share of the equal weight 1/K.
    """

    gamma: Annotated[float, Gt(0), Le(1), Doc("share of the newest norm")] = 0.01
    rho: Annotated[float, Ge(0), Le(MAX_FACTOR), Doc("pull of the average gradient")] = 0.1
    beta: Annotated[
        float | None, Gt(0), Le(MAX_FACTOR), Doc("step of the weights; 1 / largest row sum if null")
    ] = None
    matrix: Annotated[Literal["cosine", "gram"], Doc("matrix in use")] = "cosine"
    floor: Annotated[
        float, Ge(0), Lt(1), Doc("least weight of a task, as a share of the equal one")
    ] = 0.0


class MultiBalanceRule(Rule[MultiBalanceOptions]):
    """One projected gradient step per training step towards the min-norm weights.

    After MultiBalance (He et al., 2024, "MultiBalance: Multi-Objective Gradient Balancing in
    Industrial-Scale Multi-Task Recommendation System"). With n_t the gradient norms, C the cosine
    matrix (or the Gram itself), k_t the steps in which task t took part and K the active tasks:

    - u_t ← (1 - γ) u_t + γ n_t, û_t = u_t / (1 - (1 - γ)^k_t);
    - λ ← Π_Δ(λ - β (C λ + ρ C λ0)), λ0 = 1/K, start λ0;
    - α_t = K λ_t û_t / n_t.

    With ``floor`` f the projection is on the part of the simplex where every λ_t >= f λ0. Two tasks
    have equal rows in C, so λ stays λ0 with ``cosine``: only the smoothed norms differ from
    ``equal`` then.

    So a task enters with its smoothed norm û_t, in the direction of its present gradient. The
    factor K keeps the step as large as with equal weights.

    State: ``norm_average`` u (T,) float64, ``weights`` λ (T,) float64, ``steps`` k (T,) int64.
    """

    name = "multi_balance"
    options_type = MultiBalanceOptions

    def initial_state(self, num_tasks: int, device: torch.device | None = None) -> State:
        """u = 0, λ = 1/T, k = 0."""
        return {
            "norm_average": torch.zeros(num_tasks, dtype=torch.float64, device=device),
            "weights": torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64, device=device),
            "steps": torch.zeros(num_tasks, dtype=torch.int64, device=device),
        }

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α, and the next u, λ and k."""
        gram, _, active = situation
        gamma = self.options.gamma
        # Of a task that is left out a norm, too: one that can be divided by.
        norms = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
        steps = state["steps"] + 1
        average = state["norm_average"].lerp(norms, gamma)
        unbiased = average / (1 - (1 - gamma) ** steps.to(gram.dtype))

        number = active.sum(dtype=gram.dtype)
        start = active / number
        # With tasks missing, what is left of λ need not sum to 1: step from the nearest point.
        weights = project_on_simplex(state["weights"], active)
        matrix = over_norms(gram, norms) if self.options.matrix == "cosine" else gram
        weights = self._above_floor(self._moved(weights, start, matrix), start, active)

        multipliers = number * weights * unbiased / norms
        return multipliers, {"norm_average": average, "weights": weights, "steps": steps}

    def _moved(self, weights: Tensor, start: Tensor, matrix: Tensor) -> Tensor:
        """λ - β (C λ + ρ C λ0)."""
        descent = matrix @ weights.add(start, alpha=self.options.rho)
        if self.options.beta is not None:
            return weights.sub(descent, alpha=self.options.beta)
        largest = torch.linalg.vector_norm(matrix, 1, dim=1).max()
        return weights.addcdiv(descent, largest, value=-1.0)

    def _above_floor(self, weights: Tensor, start: Tensor, active: Tensor) -> Tensor:
        """The nearest point of the simplex with all active entries >= f λ0."""
        floor = self.options.floor
        if floor == 0:
            return project_on_simplex(weights, active)
        least = floor * start
        return least + (1 - floor) * project_on_simplex((weights - least) / (1 - floor), active)
