"""What a model reads: pooled features by owner of tables, and dense features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stem_torchrec.nn.owners import SHARED


class Columns(NamedTuple):
    """Columns of x (B, I): pooled features side by side, then dense features.

    Attributes:
        num_fields: F pooled features; 0 for a stream that another layer has made.
        dim: D columns of each.
        num_dense: N columns after them.

    >>> Columns(num_fields=3, dim=16, num_dense=2).width
    50
    """

    num_fields: int
    dim: int
    num_dense: int

    @property
    def pooled_width(self) -> int:
        """F * D."""
        return self.num_fields * self.dim

    @property
    def width(self) -> int:
        """I = F * D + N."""
        return self.pooled_width + self.num_dense

    def fields(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., I) -> pooled features (..., F, D) and dense features (..., N)."""
        pooled, dense = x.split([self.pooled_width, self.num_dense], dim=-1)
        return pooled.unflatten(-1, (self.num_fields, self.dim)), dense


@dataclass(frozen=True)
class Inputs:
    """What a model is told of the data.

    Attributes:
        features: id and bag features in the order of their columns -> side: ``user``, ``item`` or
            ``context``.
        dim: D, the embedding dimension of every table.
        tasks: names of the tasks, in the order of the logits' columns.
        num_dense: N dense features.

    Raises:
        ValueError: no feature or no task, a task that is named twice or ``shared``.

    >>> inputs = Inputs({"user_id": "user", "item_id": "item"}, dim=16, tasks=("click", "like"))
    >>> inputs.columns.width
    32
    """

    features: Mapping[str, str]
    dim: int
    tasks: tuple[str, ...]
    num_dense: int = 0

    def __post_init__(self) -> None:
        if not self.features:
            raise ValueError("features: none; at least one id or bag feature is needed")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks) or SHARED in self.tasks:
            raise ValueError(f"tasks: {self.tasks}; allowed: different names other than {SHARED}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the id and bag features."""
        return tuple(self.features)

    @property
    def columns(self) -> Columns:
        """Of one owner's pooled features with the dense ones after them."""
        return Columns(len(self.features), self.dim, self.num_dense)
