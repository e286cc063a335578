"""A figure over seeds."""

from typing import Any, NamedTuple

import numpy as np


class Spread(NamedTuple):
    """Values of one figure, one per seed; None where the labels do not define it."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Over the seeds that have a value."""
        known = self._known
        return float(np.mean(known)) if known else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (n - 1); None below two values."""
        known = self._known
        return float(np.std(known, ddof=1)) if len(known) > 1 else None

    def text(self, *, signed: bool = False) -> str:
        """``mean ± std``, or ``-``."""
        if self.mean is None:
            return "-"
        mean = f"{self.mean:+.4f}" if signed else f"{self.mean:.4f}"
        return mean if self.std is None else f"{mean} ± {self.std:.4f}"

    def record(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}

    @property
    def _known(self) -> list[float]:
        return [value for value in self.values if value is not None]
