"""The matrix products of one STEM-Net training step and nothing else: a floor for its time.

B rows; one shared expert and one per task, a gate and a tower per task.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch


class LayerProducts:
    """Forward and backward products of one affine layer, into tensors that are there already."""

    def __init__(self, batch_size: int, width_in: int, width_out: int) -> None:
        self.x = torch.randn(batch_size, width_in)
        self.weight = torch.randn(width_in, width_out)
        self.bias = torch.randn(width_out)
        self.y = torch.randn(batch_size, width_out)
        self.weight_gradient = torch.empty_like(self.weight)
        self.x_gradient = torch.empty_like(self.x)

    def run(self) -> None:
        torch.addmm(self.bias, self.x, self.weight, out=self.y)
        torch.mm(self.x.t(), self.y, out=self.weight_gradient)
        torch.mm(self.y, self.weight.t(), out=self.x_gradient)


class MatrixFloor:
    """Every product with the shape it has in the model; the results are not used.

    Args:
        width: F * D, the width of one owner's pooled features.
        hidden_widths: hidden layers of gates and towers.
    """

    def __init__(
        self,
        batch_size: int,
        width: int,
        num_tasks: int,
        expert_widths: Sequence[int],
        hidden_widths: Sequence[int],
    ) -> None:
        num_experts = num_tasks + 1
        perceptrons = [[width, *expert_widths]] * num_experts
        perceptrons += [[2 * width, *hidden_widths, num_experts]] * num_tasks
        perceptrons += [[expert_widths[-1], *hidden_widths, 1]] * num_tasks
        self.layers = [
            LayerProducts(batch_size, width_in, width_out)
            for widths in perceptrons
            for width_in, width_out in pairwise(widths)
        ]

    @torch.no_grad()
    def step(self) -> None:
        for layer in self.layers:
            layer.run()
