"""Numbers as networks take them: what is fitted on the rows of train, and its use on any row.

The same code makes the columns of a prepared folder and those of a request. n values.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DenseTransform = Literal["log1p", "standard", "quantile", "count"]
TransformName = Literal[DenseTransform, "bucket"]

_MISSING_QUANTILE = 0.5
_FLOAT_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Transform:
    """A transform with the constants of its fit.

    ``log1p``     ln(1 + x)
    ``standard``  (x - ``mean``) / ``deviation``
    ``quantile``  the share of train's values below x, 0 to 1: linear between the ``bounds``, whose
                  ``shares`` are known; a missing value is in the middle
    ``count``     ln(1 + c), c being the rows of train with the value; 0 if it was not seen
    ``bucket``    1 + how many of the ``bounds`` are at or below x; 0 if it is missing
    """

    name: TransformName
    mean: float = 0.0
    deviation: float = 1.0
    bounds: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()

    def __call__(self, values: pa.Array) -> pa.Array:
        """Numbers, null or NaN where missing, (n,) -> float32, null where missing; of ``bucket``
        int64 ids."""
        numbers = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
        missing = np.isnan(numbers)  # nulls are NaN there
        if self.name == "bucket":
            ids = 1 + np.searchsorted(np.array(self.bounds), numbers, side="right")
            return pa.array(np.where(missing, 0, ids).astype(np.int64))
        made = self._dense(np.where(missing, 0.0, numbers))
        made = np.clip(made, -_FLOAT_MAX, _FLOAT_MAX).astype(np.float32)
        if self.name == "quantile":
            return pa.array(np.where(missing, np.float32(_MISSING_QUANTILE), made))
        return pa.array(made, mask=missing)

    def _dense(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.name == "standard":
            return (numbers - self.mean) / self.deviation
        if self.name == "quantile":
            return np.interp(numbers, self.bounds, self.shares)
        return np.log1p(numbers)

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def transform_from(content: Mapping[str, Any]) -> Transform:
    """What ``content`` gave.

    Raises:
        ValueError, TypeError, KeyError: it is something else.
    """
    name = content["name"]
    if name not in {*get_args(DenseTransform), "bucket"}:
        raise ValueError(name)
    bounds, shares = (tuple(map(float, content[key])) for key in ("bounds", "shares"))
    num_shares = len(bounds) if name == "quantile" else 0
    if list(bounds) != sorted(bounds) or len(shares) != num_shares:
        raise ValueError("bounds")
    if name == "quantile" and not bounds:
        raise ValueError("bounds")
    return Transform(name, float(content["mean"]), float(content["deviation"]), bounds, shares)
