"""Norms and cosines of the tasks' gradients, from their Gram matrix.

T tasks; G (T, T) with G_st = ⟨g_s, g_t⟩.
"""

import torch
from torch import Tensor


def gradient_norms(gram: Tensor) -> Tensor:
    """(T,) Euclidean norms √G_tt; 0 where the diagonal is not positive."""
    return gram.diagonal().clamp_min(0.0).sqrt()


def cosines(gram: Tensor) -> Tensor:
    """(T, T) cosine matrix C; rows and columns of a zero gradient are 0, C_tt included."""
    norms = gradient_norms(gram)
    return over_norms(gram, torch.where(norms > 0, norms, torch.inf))


def over_norms(gram: Tensor, norms: Tensor) -> Tensor:
    """``cosines`` where the norms (T,) are known, of a zero gradient any number but 0."""
    return (gram / norms / norms.unsqueeze(1)).clamp(-1.0, 1.0)
