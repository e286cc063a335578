"""The tables' pooled sums -> the pooled features of each owner.

B rows of the local batch, F features, D_f embedding dimension of feature f, O owners, C_o columns
of owner o's pooled features: the sum of D_f over its features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

Place = tuple[str, int]
"""A name among the tables' outputs, and which of the owners side by side in it."""


class ByOwner(nn.Module):
    """Joins the pooled features of each owner by name: their order follows the sharding plan.

    Tables pool by sum and bags of mean pooling are divided by their lengths here: TorchRec's
    row-wise mean is wrong where several tables serve one feature (it divides sums as well).

    Every owner's features are copied once, in the order in which its experts read them; on a CPU
    not at all where the tables lie owner by owner. Splitting and joining beats FBGEMM's
    ``permute_multi_embedding`` (TorchRec's ``regroup``), which on CPU copies element by element.
    One strided copy of all owners beats both, where features of one width have all owners side by
    side.

    Args:
        places: per owner, feature -> where it is among the tables' outputs.
        widths: feature -> D_f.
        mean_bags: names of the features whose sums are to be divided.
    """

    def __init__(
        self,
        places: Mapping[str, Mapping[str, Place]],
        widths: Mapping[str, int],
        mean_bags: Sequence[str],
    ) -> None:
        super().__init__()
        self._places = places
        self._width_of_key = {
            key: widths[name] for of_owner in places.values() for name, (key, _) in of_owner.items()
        }
        self._widths = [sum(widths[name] for name in of_owner) for of_owner in places.values()]
        self._mean_bags = mean_bags

    def forward(self, sums: KeyedTensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Sums by output name, and the ids they came from -> (B, C_o) by owner."""
        values = sums.values()
        if not values.is_cuda and self.is_by_owner(sums.keys()):
            return dict(zip(self._places, values.split(self._widths, dim=1), strict=True))
        if self.is_grid(sums.keys()):
            of_owners = OutOfGrid.apply(values, len(sums.keys()), len(self._places))
            return dict(zip(self._places, of_owners, strict=True))
        pieces = self._pieces(sums)
        sizes = {}
        if self._mean_bags:
            lengths = sparse.lengths().view(len(sparse.keys()), -1, 1).clamp(min=1)
            sizes = {name: lengths[sparse.keys().index(name)] for name in self._mean_bags}
        return {
            owner: torch.cat(
                [
                    pieces[place] / sizes[name] if name in sizes else pieces[place]
                    for name, place in places.items()
                ],
                dim=1,
            )
            for owner, places in self._places.items()
        }

    def is_by_owner(self, keys: Sequence[str]) -> bool:
        """Whether columns are owner by owner, each owner's features in its order."""
        in_order = [place for of_owner in self._places.values() for place in of_owner.values()]
        return not self._mean_bags and [(key, 0) for key in keys] == in_order

    def is_grid(self, keys: Sequence[str]) -> bool:
        """Whether columns are F features by O owners by D, each owner's features in this order."""
        return (
            not self._mean_bags
            and len({self._width_of_key[key] for key in keys}) == 1
            and all(
                [*places.values()] == [(key, owner) for key in keys]
                for owner, places in enumerate(self._places.values())
            )
        )

    def _pieces(self, sums: KeyedTensor) -> dict[Place, Tensor]:
        """(B, D_f) each, all from one split, whose backward is one copy."""
        widths = {
            (key, index): self._width_of_key[key]
            for key, width in zip(sums.keys(), sums.length_per_key(), strict=True)
            for index in range(width // self._width_of_key[key])
        }
        return dict(zip(widths, sums.values().split(list(widths.values()), dim=1), strict=True))


class OutOfGrid(torch.autograd.Function):
    """(B, F * O * D) -> O times (B, F * D): one copy, and one of each owner's gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, features: int, owners: int) -> tuple[Tensor, ...]:
        ctx.grid = (len(values), features, owners, -1)
        return values.view(ctx.grid).permute(2, 0, 1, 3).reshape(owners, len(values), -1).unbind(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        rows, features, owners, _ = ctx.grid
        grid = gradients[0].new_empty(rows, features, owners, gradients[0].shape[1] // features)
        for owner, gradient in enumerate(gradients):
            grid[:, :, owner] = gradient.view(rows, features, -1)
        return grid.view(rows, -1), None, None
