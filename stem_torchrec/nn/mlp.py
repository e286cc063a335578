"""K multilayer perceptrons of one shape as batched matrix products.

K perceptrons, B rows, widths I -> ... -> O.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class BatchedLinear(nn.Module):
    """K independent affine maps: (K, B, I) -> (K, B, O), initialised like ``nn.Linear``."""

    def __init__(self, num: int, width_in: int, width_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(num, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, width_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)


class BatchedMlp(nn.Module):
    """K perceptrons of equal shape with ReLU (and dropout) after each hidden layer.

    Perceptron k sees only its own input and weights: its gradient from another one's output is
    exactly zero.

    Args:
        num: K.
        width_in: I.
        hidden: widths of the hidden layers.
        width_out: width of a last, linear layer; none if null.
        dropout: probability of dropping a hidden activation.
    """

    def __init__(
        self,
        num: int,
        width_in: int,
        hidden: Sequence[int],
        width_out: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num = num
        widths = [width_in, *hidden]
        self.hidden = nn.ModuleList(BatchedLinear(num, i, o) for i, o in pairwise(widths))
        self.last = BatchedLinear(num, widths[-1], width_out) if width_out else None
        self.dropout = nn.Dropout(dropout)
        self.width_out = width_out or widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, I), or (B, I) that all K read, -> (K, B, O)."""
        if x.dim() == 2:
            x = x.expand(self.num, -1, -1)
        for layer in self.hidden:
            x = self.dropout(layer(x).relu_())
        return self.last(x) if self.last is not None else x
