"""What a model reads: pooled features by owner of tables, and dense features."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stem_torchrec.nn.owners import SHARED, Owners


class Columns(NamedTuple):
    """Columns of x (B, I): pooled features side by side, then dense features.

    Attributes:
        widths: D_f of each of the F pooled features; none for a stream that another layer has
            made.
        num_dense: N columns after them.

    >>> Columns(widths=(16, 16, 32), num_dense=2).width
    66
    """

    widths: tuple[int, ...]
    num_dense: int

    @property
    def pooled_width(self) -> int:
        """Sum of D_f."""
        return sum(self.widths)

    @property
    def width(self) -> int:
        """I, the sum of D_f and N."""
        return self.pooled_width + self.num_dense

    def fields(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., I) -> pooled features of one width D, (..., F, D), and dense ones (..., N)."""
        pooled, dense = x.split([self.pooled_width, self.num_dense], dim=-1)
        return pooled.unflatten(-1, (len(self.widths), -1)), dense


def joined(*parts: Tensor) -> Tensor:
    """(B, C_i) each, side by side. One that alone has columns is not copied.

    >>> joined(torch.rand(5, 8), torch.rand(5, 2)).shape
    torch.Size([5, 10])
    """
    filled = [part for part in parts if part.shape[-1]]
    return filled[0] if len(filled) == 1 else torch.cat(parts, dim=-1)


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """T parts (B, I) -> (T, B, I).

    They are not copied where they lie evenly in one memory, as pooled features do that were cut
    out of the tables' sums.

    >>> columns = torch.rand(5, 12)
    >>> of_tasks = stacked(columns.split(4, dim=1))
    >>> of_tasks.shape, of_tasks.data_ptr() == columns.data_ptr()
    (torch.Size([3, 5, 4]), True)
    """
    distance = None if torch.compiler.is_compiling() else _distance(parts)
    return torch.stack([*parts]) if distance is None else _AsTheyLie.apply(distance, *parts)


def _distance(parts: Sequence[Tensor]) -> int | None:
    """Elements from each part to the next in a memory that they share; None if that differs."""
    first = parts[0]
    memory = first.untyped_storage().data_ptr()
    distances = {
        after.storage_offset() - before.storage_offset()
        if after.untyped_storage().data_ptr() == memory
        and (after.shape, after.stride(), after.dtype) == (first.shape, first.stride(), first.dtype)
        else 0
        for before, after in pairwise(parts)
    }
    return int(min(distances)) if len(distances) == 1 and min(distances) > 0 else None


class _AsTheyLie(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: int, *parts: Tensor) -> Tensor:
        first = parts[0]
        return first.as_strided((len(parts), *first.shape), (distance, *first.stride()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, *gradient.unbind(0)


def side_by_side(widths: Iterable[int]) -> list[range]:
    """The columns of features that stand side by side, by their widths.

    >>> side_by_side([4, 8])
    [range(0, 4), range(4, 12)]
    """
    return [range(start, stop) for start, stop in pairwise(accumulate(widths, initial=0))]


@dataclass(frozen=True)
class Inputs:
    """What a model is told of the data.

    Attributes:
        features: id and bag features in the order of their columns -> side: ``user``, ``item`` or
            ``context``.
        dim: D, the embedding dimension of every table that ``dims`` does not name.
        tasks: names of the tasks, in the order of the logits' columns.
        num_dense: N dense features.
        dims: feature -> embedding dimension of its tables.

    Raises:
        ValueError: no feature or no task, a task that is named twice or ``shared``, a dimension of
            no feature.

    >>> inputs = Inputs({"user_id": "user", "item_id": "item"}, dim=16, tasks=("click", "like"))
    >>> inputs.columns.width
    32
    >>> Inputs(inputs.features, 16, inputs.tasks, dims={"user_id": 64}).columns.width
    80
    """

    features: Mapping[str, str]
    dim: int
    tasks: tuple[str, ...]
    num_dense: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features: none; at least one id or bag feature is needed")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or SHARED in self.tasks:
            raise ValueError(f"tasks: {self.tasks}; allowed: different names other than {SHARED}")
        if unknown := [name for name in self.dims if name not in self.features]:
            raise ValueError(f"dims: unknown feature {unknown[0]!r}; there are {self.names}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the id and bag features."""
        return tuple(self.features)

    @property
    def widths(self) -> dict[str, int]:
        """Feature -> D_f, in the order of the columns."""
        return {name: self.dims.get(name, self.dim) for name in self.features}

    @property
    def columns(self) -> Columns:
        """Of the pooled features of an owner of all, with the dense ones after them."""
        return Columns(tuple(self.widths.values()), self.num_dense)

    def pooled_widths(self, owners: Owners) -> dict[str, int]:
        """Owner -> columns of its pooled features, the sum of their D_f."""
        widths = self.widths
        return {owner: sum(widths[name] for name in names) for owner, names in owners.items()}
