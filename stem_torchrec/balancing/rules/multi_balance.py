"""MultiBalance: smoothed min-norm weights on the cosine matrix, with smoothed gradient norms."""

from typing import Literal

import torch
from torch import Tensor

from stem_torchrec.balancing.cosine import cosines, gradient_norms
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.balancing.simplex import project_on_simplex
from stem_torchrec.errors import UserError


class MultiBalance(Rule):
    """One projected gradient step per training step towards the min-norm weights.

    After MultiBalance (He et al., 2024, "MultiBalance: Multi-Objective Gradient Balancing in
    Industrial-Scale Multi-Task Recommendation System"). With n_t the gradient norms, C the cosine
    matrix (or the Gram itself), k_t the steps in which task t took part and K the active tasks:

    - u_t ← (1 - γ) u_t + γ n_t, û_t = u_t / (1 - (1 - γ)^k_t);
    - λ ← Π_Δ(λ - β (C λ + ρ C λ0)), λ0 = 1/K, start λ0;
    - α_t = K λ_t û_t / n_t.

    So a task enters with its smoothed norm û_t, in the direction of its present gradient. The
    factor K keeps the step as large as with equal weights.

    State: ``norm_average`` u (T,) float64, ``weights`` λ (T,) float64, ``steps`` k (T,) int64.

    Args:
        gamma: γ in (0, 1].
        rho: ρ >= 0, the pull away from directions that the average conflicts with.
        beta: β > 0, the step; 1 / ‖C‖_∞ (largest absolute row sum) if None.
        matrix: what stands for C, ``cosine`` or ``gram``.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(
        self,
        gamma: float = 0.01,
        rho: float = 0.1,
        beta: float | None = None,
        matrix: Literal["cosine", "gram"] = "cosine",
    ) -> None:
        if not 0 < gamma <= 1:
            raise UserError(f"balance.gamma: {gamma}; allowed: above 0, at most 1")
        if not 0 <= rho < float("inf"):
            raise UserError(f"balance.rho: {rho}; allowed: a finite number >= 0")
        if beta is not None and not 0 < beta < float("inf"):
            raise UserError(f"balance.beta: {beta}; allowed: a finite number > 0, or null")
        if matrix not in ("cosine", "gram"):
            raise UserError(f"balance.matrix: {matrix!r}; allowed: cosine, gram")
        self._gamma = gamma
        self._rho = rho
        self._beta = beta
        self._matrix = matrix

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
        norms = gradient_norms(gram)
        steps = state["steps"] + 1
        average = (1 - self._gamma) * state["norm_average"] + self._gamma * norms
        unbiased = average / (1 - (1 - self._gamma) ** steps.to(gram.dtype))

        matrix = cosines(gram) if self._matrix == "cosine" else gram
        num_active = active.sum()
        start = active.to(gram.dtype) / num_active.clamp_min(1)
        # With tasks missing, what is left of λ need not sum to 1: step from the nearest point.
        weights = project_on_simplex(state["weights"], active)
        descent = matrix @ (weights + self._rho * start)
        if self._beta is None:
            largest = matrix.abs().sum(dim=1).max()
            descent = descent / torch.where(largest > 0, largest, 1.0)
        else:
            descent = self._beta * descent
        weights = project_on_simplex(weights - descent, active)

        multipliers = num_active * weights * unbiased / norms
        return multipliers, {"norm_average": average, "weights": weights, "steps": steps}
