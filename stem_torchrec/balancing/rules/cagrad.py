"""CAGrad: the direction near the average that helps the worst-off task most."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.central_path import Local, minimize_on_simplex
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import Options

ITERATIONS = 32
SHRINK = 0.5
# ‖g_w‖ below this share of the largest gradient counts as 0.
STATIONARY = 1e-6
# Keeps the solver's scales positive where the mean gradient is 0.
FLOOR = 1e-30


@dataclass(frozen=True)
class CaGradOptions(Options):
    """Settings of ``cagrad``.

    Attributes:
        cagrad_c: c, the radius of the search around g_0 relative to its norm, in [0, 1).
    """

    cagrad_c: Annotated[
        float, Ge(0), Lt(1), Doc("distance from the average gradient, share of its norm")
    ] = 0.5


class CaGradRule(Rule[CaGradOptions]):
    """d = g_0 + (√φ / ‖g_w‖) g_w of Liu et al. (NeurIPS 2021, algorithm 1), on the Gram matrix.

    g_0 is the mean gradient of the active tasks, φ = c² ‖g_0‖², g_w = Σ_t w_t g_t, and w minimises
    F(w) = ⟨g_w, g_0⟩ + √φ ‖g_w‖ over the simplex. Where the best g_w is 0 (the tasks are
    Pareto-stationary) the second term is left out.
    """

    name = "cagrad"
    options_type = CaGradOptions

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) α_t = 1/K + (√φ / ‖g_w‖) w_t for K active tasks."""
        gram, _, active = situation
        mean = active.to(gram.dtype) / active.sum().clamp_min(1)
        if self.options.cagrad_c == 0:
            return mean, state
        largest = gram.diagonal().max()
        gram = gram / torch.where(largest > 0, largest, 1.0)
        products = gram @ mean
        radius = self.options.cagrad_c * (mean @ products).clamp_min(0.0).sqrt()
        weights = worst_case_weights(gram, products, radius, mean)
        length = (weights @ gram @ weights).clamp_min(0.0).sqrt()
        factor = torch.where(length > STATIONARY, radius / length.clamp_min(STATIONARY), 0.0)
        return mean + factor * weights, state


def worst_case_weights(gram: Tensor, products: Tensor, radius: Tensor, mean: Tensor) -> Tensor:
    """w (T,) on the simplex of the active tasks, minimising productsᵀ w + radius √(wᵀ G w).

    The norm has a kink at 0, where Newton's method would jump to and fro. It is smoothed to
    √(wᵀ G w radius² + (K μ)²), whose error K μ is that of the barrier itself, and a step may change
    it by no more than its own size.

    Args:
        gram: (T, T) float64 with a largest diagonal entry of 1, 0 for inactive tasks.
        products: (T,) ⟨g_t, g_0⟩.
        radius: () √φ.
        mean: (T,) 1/K for the active tasks, else 0.
    """
    active = mean > 0
    plane = active.to(gram.dtype)
    count = plane.sum()
    # An absent task has a row of zeros in G, products and plane: its w moves no other's.
    square = (radius * radius).clamp_min(FLOOR)

    def local(w: Tensor, barrier: Tensor) -> Local:
        image = gram @ w
        length = (square * (w @ image).clamp_min(0.0) + (count * barrier) ** 2).sqrt()
        slope = square / length
        hessian = slope * gram - (slope / length * slope) * torch.outer(image, image)
        return Local(products + slope * image, hessian, slope, slope / length * gram)

    start = torch.where(active, mean, 1.0)
    barrier = torch.maximum(radius, products.abs().max()).clamp_min(FLOOR) / count.clamp_min(1)
    found = minimize_on_simplex(local, plane, start, barrier, shrink=SHRINK, iterations=ITERATIONS)
    found = torch.where(active, found, 0.0)
    return found / found.sum()
