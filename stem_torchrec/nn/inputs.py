"""What a network reads: pooled features side by side, then dense features."""

from typing import NamedTuple

from torch import Tensor

from stem_torchrec.schema import Schema


class Inputs(NamedTuple):
    """Columns of x (B, I).

    Attributes:
        num_fields: F pooled features.
        dim: D columns of each.
        num_dense: N dense features after them.
    """

    num_fields: int
    dim: int
    num_dense: int

    @classmethod
    def of(cls, schema: Schema, dim: int) -> "Inputs":
        return cls(len(schema.sparse), dim, len(schema.dense))

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
