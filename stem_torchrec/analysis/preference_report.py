"""The preference analysis as text, tables and plots."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stem_torchrec.analysis.pairs import separation, summary
from stem_torchrec.analysis.preference import Analysis, Panel
from stem_torchrec.analysis.report import Report, Section, Table

_BINS = 40
_COLORS = ("tab:blue", "tab:orange")
_DISTANCES = (
    "Euclidean distances between the user's and the item's row in each owner's tables of each run, "
    "over the pairs of either direction. Standard deviation of all of them. Separation: the "
    "probability that a pair close for {a} is closer here than one close for {b}; 1.0 if the "
    "table follows {a}'s preference, 0.0 if {b}'s, 0.5 if it does not tell the directions apart."
)


def report(found: Analysis, origin: str) -> Report:
    """Method, contradicting pairs, their distances with a plot."""
    a, b = found.question.tasks
    sections = [
        Section("Contradicting pairs", _method(found), pair_table(found)),
        Section("Distances", _DISTANCES.format(a=a, b=b) + _left_out(found), distance_table(found)),
        Section("Distributions", "Density of the distances.", plot=_plot(found)),
    ]
    return Report(f"Contradicting preferences of {a} and {b}", sections, _data(found), origin)


def directions(found: Analysis) -> tuple[str, str]:
    """Names of the two directions, in the order of ``Contradicting``."""
    a, b = found.question.tasks
    return f"{a} close, {b} far", f"{a} far, {b} close"


def pair_table(found: Analysis) -> Table:
    """Number and share of the samples in either direction, per single-task runs."""
    rows = []
    for singles, pairs in found.pairs.items():
        folders = ", ".join(dict.fromkeys(f"{run.path} (seed {run.seed})" for run in singles))
        for name, mask in zip(directions(found), pairs, strict=True):
            share = f"{100 * mask.mean():.1f} %"
            rows.append([name, f"{mask.sum():,}", share, folders])
    return Table(["direction", "samples", "share of all", "told by"], rows)


def distance_table(found: Analysis) -> Table:
    """One row per run, owner and direction."""
    rows = []
    for panel in found.panels:
        apart = separation(panel.near_a, panel.near_b)
        values = (panel.near_a, panel.near_b)
        for name, distance in zip(directions(found), values, strict=True):
            cells = [_cell(value) for value in summary(distance)[1:]]
            rows.append([_label(panel), panel.owner, name, *cells, _cell(apart)])
    figures = ["mean", "std", "25 %", "median", "75 %"]
    return Table(["run", "owner", "direction", *figures, "separation"], rows)


def _label(panel: Panel) -> str:
    return f"{panel.model}, seed {panel.run.seed}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _method(found: Analysis) -> str:
    question = found.question
    a, b = question.tasks
    user, item = (feature.name for feature in question.features)
    percent = f"{100 * question.share:g} %"
    return (
        f"Each sample of the {question.split} split is a pair of {user} and {item}; a pair that "
        "occurs twice counts twice. As Su et al. (AAAI 2024, figure 5) have it, a small Euclidean "
        "distance between the two rows stands for a strong preference. The distances in the "
        f"single-task models' tables of {a} and of {b} tell the pairs on which the tasks "
        f"contradict each other: among the nearest {percent} of all samples for one, and the "
        f"farthest {percent} for the other; equal distances are in or out together. The runs of "
        "a seed are read on the pairs that the single-task runs of that seed tell, where there is "
        "one per seed."
    )


def _left_out(found: Analysis) -> str:
    if not found.left_out:
        return ""
    owners = ", ".join(f"{owner} of {run.path}" for run, owner in found.left_out)
    return f" Left out, for want of a table of the user's or the item's own: {owners}."


def _plot(found: Analysis) -> Figure:
    """A row of panels per run, a panel per owner."""
    rows: dict[str, list[Panel]] = {}
    for panel in found.panels:
        rows.setdefault(_label(panel), []).append(panel)
    width = max(len(panels) for panels in rows.values())
    figure = Figure(figsize=(4 * width, 2.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), width, squeeze=False)
    for line, (label, panels) in zip(axes, rows.items(), strict=True):
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(line, panels, strict=False):
            _densities(axis, panel)
            axis.set_title(f"{label}: {panel.owner}", fontsize=9)
    handles = [Patch(color=c, label=n) for c, n in zip(_COLORS, directions(found), strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _densities(axis: Axes, panel: Panel) -> None:
    both = np.concatenate([panel.near_a, panel.near_b])
    if not len(both):
        axis.text(0.5, 0.5, "no pairs", ha="center", transform=axis.transAxes)
        return
    bins = np.histogram_bin_edges(both, _BINS).tolist()
    for values, color in zip((panel.near_a, panel.near_b), _COLORS, strict=True):
        if len(values):
            axis.hist(values, bins, density=True, alpha=0.55, color=color)
    axis.set_xlabel("distance", fontsize=8)


def _data(found: Analysis) -> dict[str, Any]:
    question, names = found.question, directions(found)
    return {
        "tasks": list(question.tasks),
        "split": question.split,
        "share": question.share,
        "user_feature": question.features[0].name,
        "item_feature": question.features[1].name,
        "pairs": [
            {
                "direction": name,
                "samples": int(mask.sum()),
                "share": float(mask.mean()),
                "single_task_runs": [str(run.path) for run in singles],
            }
            for singles, pairs in found.pairs.items()
            for name, mask in zip(names, pairs, strict=True)
        ],
        "distances": [_record(panel, names) for panel in found.panels],
    }


def _record(panel: Panel, names: tuple[str, str]) -> dict[str, Any]:
    return {
        "run": str(panel.run.path),
        "model": panel.model,
        "seed": panel.run.seed,
        "owner": panel.owner,
        "separation": separation(panel.near_a, panel.near_b),
        names[0]: summary(panel.near_a)._asdict(),
        names[1]: summary(panel.near_b)._asdict(),
    }
