"""Gram matrices to try rules on, and quadratic programs solved in float64 by other means.

T tasks, K dimensions of the gradients.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from stem_torchrec.balancing.cosine import cosines, gradient_norms
from stem_torchrec.balancing.rule import Balanced, Rule, Situation, balance

KINDS = ("random", "opposed", "identical", "aligned", "near", "torn")


def gradients(kind: str, num_tasks: int, dim: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    """(T, K) float32 gradients whose norms differ by up to about ``spread``.

    random, opposed (two exactly against each other), identical up to size, aligned (a common
    part), near (almost identical), torn (two camps).
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(num_tasks, dim, generator=generator)
    if kind == "opposed":
        found[1] = -1.7 * found[0]
    elif kind == "identical":
        found[1:] = found[0] * (0.1 + torch.rand(num_tasks - 1, 1, generator=generator))
    elif kind == "aligned":
        found = found + 1.0
    elif kind == "near":
        found[1:] = found[0] + 1e-3 * found[1:]
    elif kind == "torn":
        side = 2.0 * found[:1].clone()
        found[: num_tasks // 2] += side
        found[num_tasks // 2 :] -= side
    sizes = torch.logspace(0, float(np.log10(spread)), num_tasks)
    return found * sizes[torch.randperm(num_tasks, generator=generator)].unsqueeze(1)


def gram_of(rows: Tensor) -> Tensor:
    """(T, K) -> (T, T) float32."""
    return rows @ rows.T


def situation_of(gram: Tensor, losses: Tensor | None = None) -> Situation:
    """What a rule sees when every task takes part."""
    num_tasks = len(gram)
    losses = torch.ones(num_tasks) if losses is None else losses
    return Situation(gram.double(), losses.double(), torch.ones(num_tasks, dtype=torch.bool))


def apply(rule: Rule, gram: Tensor, step: int = 0, losses: Tensor | None = None) -> Balanced:
    """One step from the initial state."""
    losses = torch.ones(len(gram)) if losses is None else losses
    return balance(rule, gram, losses, rule.initial_state(len(gram)), step)


def min_norm_oracle(gram: Tensor) -> NDArray[np.float64]:
    """λ (T,) by non-negative least squares.

    The minimiser of ‖Ay‖² + (bᵀy - 1)² over y >= 0, b = 1/n, is a multiple of that of ‖Ay‖² on
    bᵀy = 1, y >= 0.
    """
    norms = gradient_norms(gram.double())
    values, vectors = np.linalg.eigh(cosines(gram.double()).numpy())
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    plane = (norms.min() / norms).numpy()
    target = np.zeros(len(gram) + 1)
    target[-1] = 1.0
    found, _ = nnls(np.vstack([root, plane]), target, maxiter=10_000)
    weights = found * plane
    return weights / weights.sum()


def square_norm(gram: Tensor, weights: Tensor) -> float:
    """‖Σ λ_t g_t‖², in units of the smallest gradient's."""
    unit = gram.double() / gram.double().diagonal().min()
    return float(weights.double() @ unit @ weights.double())


def rounding(gram: Tensor, weights: Tensor) -> float:
    """What rounding of a float32 Gram makes uncertain in ``square_norm``: 2⁻²³ Σ (λ_t n_t)²."""
    unit = gram.double().diagonal() / gram.double().diagonal().min()
    return float((weights.double() ** 2 * unit).sum()) * 2.0**-23
