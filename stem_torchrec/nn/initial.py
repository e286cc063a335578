"""Initial values of dense weights."""

from typing import Literal

import torch
from torch import nn

from stem_torchrec.nn.mlp import BatchedLinear

Initial = Literal["xavier", "uniform"]
"""``xavier``: normal of variance 2 / (inputs + outputs) (Glorot and Bengio, AISTATS 2010, equation
12) with zero biases, as the reference code of STEM has it. ``uniform``: as ``nn.Linear``, within
1/sqrt(inputs), biases too; a third of the variance where a layer is as wide as the one before."""


@torch.no_grad()
def initialise(module: nn.Module, kind: Initial) -> None:
    """Give every affine map inside a module its first values.

    >>> layer = BatchedLinear(2, 8, 4)
    >>> initialise(layer, "xavier")
    >>> layer.bias.any().item()
    False
    """
    if kind == "uniform":
        return  # as the layers are made
    for part in module.modules():
        if isinstance(part, BatchedLinear | nn.Linear):
            inputs, outputs = part.weight.shape[-2:]  # their order is of no matter
            part.weight.normal_(std=(2 / (inputs + outputs)) ** 0.5)
            part.bias.zero_()
