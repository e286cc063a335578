"""The plots of a comparison."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from stem_torchrec.analysis.compare.results import Row
from stem_torchrec.analysis.spread import Spread

_MARKERS, _NUM_COLORS = "osD^v", 10  # the next marker where matplotlib's colors start again


def gain_bars(rows: Sequence[Row], tasks: Sequence[str]) -> Figure | None:
    """AUC gain per task, a bar per combination with its spread; None without any gain."""
    shown = [row for row in rows if any(f"gain/{task}" in row.figures for task in tasks)]
    if not shown:
        return None
    plot = Figure(figsize=(max(6, 1.2 * len(tasks) * len(shown) ** 0.5), 4))
    axes = plot.subplots()
    width = 0.8 / len(shown)
    for i, row in enumerate(shown):
        found = [(j, row.figures.get(f"gain/{task}")) for j, task in enumerate(tasks)]
        known = [(j, gain) for j, gain in found if gain is not None]
        places = [j + (i - (len(shown) - 1) / 2) * width for j, _ in known]
        axes.bar(
            places,
            [gain.mean or 0.0 for _, gain in known],
            width,
            yerr=[gain.std or 0.0 for _, gain in known],
            capsize=2,
            label=row.combination.label,
        )
    axes.axhline(0, linewidth=0.8, color="gray")
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel("AUC gain over single_task")
    axes.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return plot


def auc_against_qps(rows: Sequence[Row]) -> Figure | None:
    points = [(row, row.figures["qps"]) for row in rows if "qps" in row.figures]
    return _auc_against(points, "samples/s")


def auc_against_parameters(rows: Sequence[Row]) -> Figure | None:
    return _auc_against([(row, Spread((row.parameters.total,))) for row in rows], "parameters")


def auc_over_days(over_days: Mapping[str, Mapping[str, Spread]]) -> Figure:
    """Mean AUC, a line per combination with its spread over seeds."""
    plot = Figure(figsize=(9, 4))
    axes = plot.subplots()
    for label, by_day in over_days.items():
        aucs = list(by_day.values())
        axes.errorbar(
            list(by_day),
            [auc.mean if auc.mean is not None else float("nan") for auc in aucs],
            yerr=[auc.std or 0.0 for auc in aucs],
            marker="o",
            capsize=2,
            label=label,
        )
    axes.set_ylabel("mean AUC")
    axes.tick_params(axis="x", labelrotation=45)
    axes.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return plot


def _auc_against(points: Sequence[tuple[Row, Spread]], name: str) -> Figure | None:
    """Mean AUC over another figure, a point per combination."""
    points = [point for point in points if "auc_mean" in point[0].figures]
    if not points:
        return None
    plot = Figure(figsize=(6, 4))
    axes = plot.subplots()
    for i, (row, other) in enumerate(points):
        auc = row.figures["auc_mean"]
        axes.errorbar(
            other.mean or 0.0,
            auc.mean or 0.0,
            xerr=other.std or 0.0,
            yerr=auc.std or 0.0,
            fmt=_MARKERS[i // _NUM_COLORS % len(_MARKERS)],
            capsize=2,
            label=row.combination.label,
        )
    axes.set_xlabel(name)
    axes.set_ylabel("mean AUC")
    axes.legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left")
    return plot
