"""The heat map of ``regimes.py``: a row per model and rule, a column per world."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Record = dict[str, Any]


def heat_map(cells: Sequence[Record], file: Path) -> None:
    """Gain in mean AUC over single-task networks, ± its spread over seeds; above 0 is better.

    A dash is a rule that does not fit the model, a cross one of which no seed ended.
    """
    from matplotlib.figure import Figure

    worlds = list(dict.fromkeys(cell["world"] for cell in cells))
    lines = list(dict.fromkeys((cell["model"], cell["rule"]) for cell in cells))
    by_place = {(cell["model"], cell["rule"], cell["world"]): cell for cell in cells}
    table = [[by_place[(*line, world)] for world in worlds] for line in lines]
    gains = [[_gain(cell) for cell in row] for row in table]
    highest = max((abs(g) for row in gains for g in row if g is not None), default=0.0) or 1.0

    plot = Figure(figsize=(3.5 + 1.3 * len(worlds), 1.2 + 0.4 * len(lines)), layout="tight")
    axes = plot.subplots()
    colors = [[float("nan") if gain is None else gain for gain in row] for row in gains]
    image = axes.imshow(colors, cmap="RdBu", vmin=-highest, vmax=highest, aspect="auto")
    for i, row in enumerate(table):
        for j, cell in enumerate(row):
            axes.text(j, i, text_of(cell), ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(worlds)), [world.replace("_", " ") for world in worlds], fontsize=8)
    names = [f"{model.replace('_', ' ')}, {rule}" for model, rule in lines]
    axes.set_yticks(range(len(lines)), names, fontsize=8)
    plot.colorbar(image, label="gain in mean AUC over single-task networks")
    plot.savefig(file, dpi=120)


def text_of(cell: Record) -> str:
    """``+.0123 ± .0010``, or why there is nothing."""
    values = _gains(cell)
    if not values:
        return "-" if cell["left_out"] else "x"
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):+.4f}{spread}"


def _gain(cell: Record) -> float | None:
    values = _gains(cell)
    return mean(values) if values else None


def _gains(cell: Record) -> list[float]:
    return [v for v in cell["figures"].get("gain_mean", {}).values() if v is not None]
