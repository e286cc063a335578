"""A figure over seeds."""

from collections.abc import Callable
from statistics import mean, stdev
from typing import Any, NamedTuple

NOTHING = "-"


def plain(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    return f"{value:+.4f}"


class Spread(NamedTuple):
    """Values of one figure, one per seed; None where the labels do not define it."""

    values: tuple[float | None, ...]

    @property
    def mean(self) -> float | None:
        """Over the seeds that have a value."""
        return float(mean(self.known)) if self.known else None

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (n - 1); None below two values."""
        return float(stdev(self.known)) if len(self.known) > 1 else None

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    def text(self, form: Callable[[float], str] = plain) -> str:
        """``mean ± std``, or ``-``."""
        if self.mean is None:
            return NOTHING
        text = form(self.mean)
        return text if self.std is None else f"{text} ± {form(self.std).removeprefix('+')}"

    def record(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values)}
