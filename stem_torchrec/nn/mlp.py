"""K multilayer perceptrons of one shape as batched matrix products.

K perceptrons, B rows, widths I -> ... -> O.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.nn.exact import in_float32
from stem_torchrec.nn.owners import Labels, Owned

NARROW = 8
"""Outputs below which a GPU's matrix product of rows by rows has too few tiles to fill it."""

_ROWS_PER_PRODUCT = 512


class BatchedLinear(Owned):
    """K independent affine maps: (K, B, I) -> (K, B, O), initialised like ``nn.Linear``.

    Args:
        num: K.
        width_in: I.
        width_out: O.
        owners: whose each of the K maps is; None if it does not matter.
        outputs: whose each of the O outputs is, for all K alike; None if it does not matter.

    Raises:
        ValueError: another number of owners than maps, or of labels than outputs.

    >>> layer = BatchedLinear(2, 8, 4, owners=["click", "like"])
    >>> layer(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        num: int,
        width_in: int,
        width_out: int,
        *,
        owners: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        for name, labels, size in (("owners", owners, num), ("outputs", outputs, width_out)):
            if labels is not None and len(labels) != size:
                raise ValueError(f"{name}: {len(labels)} labels; allowed: one for each of {size}")
        self.owners = None if owners is None else tuple(owners)
        self.outputs = None if outputs is None else tuple(outputs)
        bound = 1 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(num, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, width_out).uniform_(-bound, bound))

    def owned_dims(self) -> dict[str, dict[int, Labels]]:
        return {
            name: {
                dim: labels
                for dim, labels in ((0, self.owners), (last, self.outputs))
                if labels is not None
            }
            for name, last in (("weight", 2), ("bias", 1))
        }

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and self.weight.shape[2] < NARROW:
            return NarrowProduct.apply(x, self.weight, self.bias)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight)

    def of_two(self, own: Tensor, common: Tensor) -> Tensor:
        """``forward`` of own columns (K, B, I_1), common ones, (B, I_2) or (K, B, I_2), after them.

        A product each, of which that of one copy of the common columns is one for all K maps: side
        by side they would be written, and their gradient too, K times.
        """
        of_own, of_common = self.weight.split([own.shape[2], common.shape[-1]], dim=1)
        found = torch.baddbmm(self.bias.unsqueeze(1), own, of_own)
        if common.dim() == 3:
            return torch.baddbmm(found, common, of_common)
        columns = common @ of_common.transpose(0, 1).flatten(1)
        return columns.unflatten(1, (len(own), -1)).transpose(0, 1) + found


class NarrowProduct(torch.autograd.Function):
    """An affine map to few outputs, whose weights' gradient is summed in parts.

    Of a gate's 3 outputs or a tower's one, a GPU makes that gradient in one tile per map, which
    walks through all rows alone: 13 ms of a step of 45 at 65,536 rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        to_x = torch.bmm(gradient, weight.transpose(1, 2))
        to_weight = rows_by_rows(x, gradient, num_parts(x.shape[1]))
        return to_x, to_weight, gradient.sum(dim=1)


def rows_by_rows(x: Tensor, y: Tensor, parts: int = 1) -> Tensor:
    """Sums over rows of x_i y_j: (K, B, I) and (K, B, O) -> (K, I, O).

    Args:
        parts: products of B / parts rows each, which are then added up in float32.
    """
    if parts == 1:
        return torch.bmm(x.transpose(1, 2), y)
    x, y = (values.unflatten(1, (parts, -1)).flatten(0, 1) for values in (x, y))
    products = torch.bmm(x.transpose(1, 2), y)
    return products.unflatten(0, (-1, parts)).sum(dim=1, dtype=torch.float32)


def num_parts(num_rows: int) -> int:
    """The largest power of two that divides the rows and leaves enough of them in each part."""
    wanted = max(1, num_rows // _ROWS_PER_PRODUCT)
    return max(1, min(num_rows & -num_rows, 1 << wanted.bit_length() - 1))


class BatchedMlp(nn.Module):
    """K perceptrons of equal shape with ReLU (and dropout) after each hidden layer.

    Perceptron k sees only its own input and weights: its gradient from another one's output is
    exactly zero.

    Args:
        num: K.
        width_in: I.
        hidden: widths of the hidden layers.
        width_out: width of a last, linear layer, which autocast leaves in float32; none if null.
        dropout: probability of dropping a hidden activation.
        owners: whose each of the K perceptrons is; None if it does not matter.
        outputs: whose each output of the last layer is; None if it does not matter.

    Raises:
        ValueError: another number of owners than perceptrons, or of labels than outputs.

    >>> experts = BatchedMlp(3, 8, (16, 4))
    >>> experts(torch.randn(5, 8)).shape
    torch.Size([3, 5, 4])
    """

    def __init__(
        self,
        num: int,
        width_in: int,
        hidden: Sequence[int],
        width_out: int | None = None,
        dropout: float = 0.0,
        *,
        owners: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.num = num
        widths = [width_in, *hidden]
        self.hidden = nn.ModuleList(
            BatchedLinear(num, i, o, owners=owners) for i, o in pairwise(widths)
        )
        self.last = (
            BatchedLinear(num, widths[-1], width_out, owners=owners, outputs=outputs)
            if width_out
            else None
        )
        self.dropout = nn.Dropout(dropout)
        self.width_out = width_out or widths[-1]

    def forward(self, x: Tensor, common: Tensor | None = None) -> Tensor:
        """(K, B, I), or (B, I) that all K read, -> (K, B, O).

        Args:
            common: (B, I_2), columns that all K read after their own, which are fewer then; or a
                copy for each, (K, B, I_2). There is a hidden layer.
        """
        if x.dim() == 2:
            x = x.expand(self.num, -1, -1)
        for k, layer in enumerate(self.hidden):
            assert isinstance(layer, BatchedLinear)
            x = layer(x) if k or common is None else layer.of_two(x, common)
            x = self.dropout(x.relu_())
        return in_float32(self.last, x) if self.last is not None else x

    @torch.no_grad()
    def input_gradients(self, x: Tensor, at_outputs: Tensor) -> Tensor:
        """T gradients (T, K, B, O) of the outputs, pulled through at once: (T, B, I) of the input.

        As T backwards of ``forward`` without dropout, in two operations per layer instead of 2 T.

        Args:
            x: (B, I), which all K read.
            at_outputs: of the type in which the outputs were made, as products here are.
        """
        dtype = at_outputs.dtype
        layers = [*self.hidden, *([] if self.last is None else [self.last])]
        weights = [layer.weight.to(dtype) for layer in layers]
        values, activations = x.to(dtype).expand(self.num, -1, -1), []
        for layer, weight in zip(self.hidden, weights, strict=False):
            assert isinstance(layer, BatchedLinear)
            values = torch.baddbmm(layer.bias.to(dtype).unsqueeze(1), values, weight).relu_()
            activations.append(values)
        found = at_outputs.transpose(0, 1)  # tasks beside rows: (K, T, B, O)
        if self.last is not None:
            found = _by_weights(found, weights.pop())
        for weight, active in zip(reversed(weights), reversed(activations), strict=True):
            found = _by_weights(_through_relu(found, active.unsqueeze(1)), weight)
        return (found[0] if self.num == 1 else found.sum(dim=0)).to(x.dtype)


_through_relu = partial(torch.ops.aten.threshold_backward, threshold=0)
"""(gradient of a ReLU's output, that output) -> gradient of its input."""


def _by_weights(gradients: Tensor, weight: Tensor) -> Tensor:
    """(K, T, B, O) gradients of an affine map's output, (K, I, O) weights -> (K, T, B, I)."""
    found = torch.bmm(gradients.flatten(1, 2), weight.transpose(1, 2))
    return found.unflatten(1, gradients.shape[1:3])
