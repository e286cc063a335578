"""The plots of a search."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial

from stem_torchrec.analysis.tune.space import Choices, Range, Space

_AXES_WIDTH = 1.6


def history(trials: Sequence[FrozenTrial], metric: str, sign: int) -> Figure:
    """Each finished trial's value, and the best so far."""
    numbers = [trial.number for trial in trials]
    values = [float(trial.value or 0) for trial in trials]
    best: list[float] = []
    for value in values:
        best.append(value if not best or sign * value > sign * best[-1] else best[-1])
    plot = Figure(figsize=(6, 3.5))
    axes = plot.subplots()
    axes.plot(numbers, values, "o", label="trial")
    axes.step(numbers, best, where="post", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    axes.legend(fontsize=7)
    return plot


def importance_bars(importances: Mapping[str, float]) -> Figure | None:
    if not importances:
        return None
    plot = Figure(figsize=(6, 0.8 + 0.35 * len(importances)))
    axes = plot.subplots()
    names = list(importances)[::-1]
    axes.barh(names, [importances[name] for name in names])
    axes.set_xlabel("importance")
    return plot


def parallel_coordinates(
    trials: Sequence[FrozenTrial], space: Space, metric: str, sign: int
) -> Figure | None:
    """A line per trial over an axis per key and one for its value, the better the darker."""
    if not trials:
        return None
    ranked = sorted(trials, key=lambda trial: sign * float(trial.value or 0))
    values = [float(trial.value or 0) for trial in ranked]
    low, high = min(values), max(values)
    plot = Figure(figsize=(_AXES_WIDTH * (len(space) + 1) + 1, 4))
    axes = plot.subplots()
    for rank, (trial, value) in enumerate(zip(ranked, values, strict=True), start=1):
        heights = [_height(part, trial.params[name]) for name, part in space.items()]
        heights.append((value - low) / (high - low) if high > low else 0.5)
        axes.plot(range(len(heights)), heights, color=colormaps["Blues"](rank / len(ranked)))
    for place, part in enumerate(space.values()):
        _label(axes, place, _marks(part))
    _label(axes, len(space), [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")])
    axes.set_xticks(range(len(space) + 1), [*space, metric], rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_ylim(-0.1, 1.1)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return plot


def _height(part: Range | Choices, value: Any) -> float:
    """Where on its axis a value is, from 0 to 1."""
    if isinstance(part, Choices):
        return part.texts.index(value) / max(1, len(part.texts) - 1)
    if part.log:
        return (log10(value) - log10(part.low)) / (log10(part.high) - log10(part.low))
    return (value - part.low) / (part.high - part.low)


def _marks(part: Range | Choices) -> list[tuple[float, str]]:
    """What is written beside an axis, and where."""
    if isinstance(part, Choices):
        return [(_height(part, text), text) for text in part.texts]
    return [(0.0, f"{part.low:g}"), (1.0, f"{part.high:g}")]


def _label(axes: Any, place: int, marks: Sequence[tuple[float, str]]) -> None:
    axes.axvline(place, linewidth=0.8, color="gray")
    for height, text in marks:
        axes.text(place + 0.03, height, text, fontsize=7, va="center")
