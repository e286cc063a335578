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
    inverse = torch.where(norms > 0, norms, torch.inf).reciprocal()
    return (gram * inverse.unsqueeze(1) * inverse.unsqueeze(0)).clamp(-1.0, 1.0)
