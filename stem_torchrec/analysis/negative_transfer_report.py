"""The negative-transfer analysis as text, tables and a plot."""

from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from stem_torchrec.analysis.negative_transfer import Analysis
from stem_torchrec.analysis.report import Report, Section, Table
from stem_torchrec.analysis.runs import Run
from stem_torchrec.analysis.spread import signed
from stem_torchrec.analysis.subsets import ALL, SUBSETS, title

ROWS = (ALL, *SUBSETS)
SINGLE = "single-task"
_GAINS = (
    "A gain is the run's figure against that of the single-task run of its seed, on the same "
    "samples: AUC minus AUC, and single-task log loss minus log loss, so more is better in both. "
    "Mean ± standard deviation over seeds; - where a subset has labels of one kind only."
)


def report(found: Analysis, origin: str) -> Report:
    """Method, subsets, gains with a plot, and the runs they come from."""
    a, b = found.tasks
    sections = [
        Section("Subsets of the samples", _method(found), _size_table(found)),
        Section("Gain over single-task models", _GAINS, gain_table(found)),
        Section("Gain in AUC", "Bars: mean over seeds. Lines: deviation.", plot=_plot(found)),
        Section("Runs", "The newest checkpoint of each.", _run_table(found)),
    ]
    return Report(f"Negative transfer between {a} and {b}", sections, _data(found), origin)


def gain_table(found: Analysis) -> Table:
    """One row per task, subset and model; the best AUC of each task and subset is marked."""
    rows: list[list[str]] = []
    best: set[tuple[int, int]] = set()
    for task, subset in product(found.tasks, ROWS):
        key = (task, subset)
        figures = [found.single(*key, "auc"), found.single(*key, "logloss")]
        means = [figures[0].mean]
        first = len(rows)
        rows.append([*_names(found, key), SINGLE, figures[0].text(), "", figures[1].text(), ""])
        for model in found.runs:
            cells = []
            for figure in ("auc", "logloss"):
                cells.append(found.score(model, *key, figure).text())
                cells.append(found.gain(model, *key, figure).text(signed))
            means.append(found.score(model, *key, "auc").mean)
            rows.append([*_names(found, key), model, *cells])
        known = [mean for mean in means if mean is not None]
        best |= {(first + i, 3) for i, mean in enumerate(means) if known and mean == max(known)}
    columns = ["task", "subset", "model", "AUC", "AUC gain", "log loss", "log loss gain"]
    return Table(columns, rows, frozenset(best))


def _names(found: Analysis, key: tuple[str, str]) -> list[str]:
    return [key[0], title(key[1], found.tasks)]


def _method(found: Analysis) -> str:
    (a, b), buckets = found.tasks, found.buckets
    far = buckets.comparable
    return (
        f"The samples of the {found.split} split, parted as in Su et al. (AAAI 2024). The "
        "single-task model's prediction is a sample's expected feedback on a task. Per task the "
        f"samples are put in {buckets.count} equally large buckets by it, lowest first (ties in "
        "file order); d "
        f"is a sample's bucket for {a} minus its bucket for {b}. {title('A', found.tasks)}: "
        f"d > {far}; comparable: |d| <= {far}; {title('B', found.tasks)}: d < -{far}. Every "
        "sample is in a bucket; in a task's figures it counts where that task's label was "
        "observed. A run is compared on the subsets that the single-task runs of its own seed make "
        "where there is one per seed, and those of the only one where there is one."
    )


def _size_table(found: Analysis) -> Table:
    rows = []
    for pair, sizes in found.sizes.items():
        for subset in ROWS:
            size = sizes[subset]
            rates = ["-" if rate is None else f"{rate:.4f}" for rate in size.positive_rates]
            share = f"{100 * size.share:.1f} %"
            row = [title(subset, found.tasks), f"{size.samples:,}", share, *rates, _folders(pair)]
            rows.append(row)
    positive = [f"positive, {task}" for task in found.tasks]
    return Table(["subset", "samples", "share", *positive, "single-task runs"], rows)


def _run_table(found: Analysis) -> Table:
    rows = [
        [str(run.path), model, str(run.seed), _folders(pair)]
        for model, runs in found.runs.items()
        for run, _, pair in runs
    ]
    return Table(["run", "model", "seed", "compared with"], rows)


def _folders(pair: tuple[Run, ...]) -> str:
    return ", ".join(dict.fromkeys(f"{run.path} (seed {run.seed})" for run in pair))


def _plot(found: Analysis) -> Figure:
    """One panel per task; in it a group of bars per subset, a bar per model."""
    figure = Figure(figsize=(5.5 * len(found.tasks), 4), layout="constrained")
    panels = figure.subplots(1, len(found.tasks), sharey=True)
    width = 0.8 / len(found.runs)
    for panel, task in zip(panels, found.tasks, strict=True):
        for index, model in enumerate(found.runs):
            gains = [found.gain(model, task, subset, "auc") for subset in ROWS]
            panel.bar(
                np.arange(len(ROWS)) + (index - (len(found.runs) - 1) / 2) * width,
                [np.nan if gain.mean is None else gain.mean for gain in gains],
                width,
                yerr=[gain.std or 0.0 for gain in gains],
                capsize=3,
                label=model,
            )
        panel.axhline(0, color="black", linewidth=0.8)
        names = [title(subset, found.tasks) for subset in ROWS]
        panel.set_xticks(range(len(ROWS)), names, rotation=15)
        panel.set_title(task)
    panels[0].set_ylabel("AUC gain over single-task")
    panels[-1].legend()
    return figure


def _data(found: Analysis) -> dict[str, Any]:
    return {
        "tasks": list(found.tasks),
        "split": found.split,
        "buckets": found.buckets.count,
        "comparable": found.buckets.comparable,
        "subsets": [
            {
                "subset": title(subset, found.tasks),
                "samples": size.samples,
                "share": size.share,
                "positive_rate": dict(zip(found.tasks, size.positive_rates, strict=True)),
                "single_task_runs": [str(run.path) for run in pair],
            }
            for pair, sizes in found.sizes.items()
            for subset, size in sizes.items()
        ],
        "scores": [
            {"model": model, "task": task, "subset": title(subset, found.tasks)}
            | _figures(found, model, task, subset)
            for task, subset in product(found.tasks, ROWS)
            for model in (SINGLE, *found.runs)
        ],
        "runs": [
            {
                "run": str(run.path),
                "model": model,
                "seed": run.seed,
                "single_task_runs": [str(single.path) for single in pair],
            }
            for model, runs in found.runs.items()
            for run, _, pair in runs
        ],
    }


def _figures(found: Analysis, model: str, task: str, subset: str) -> dict[str, Any]:
    if model == SINGLE:
        return {name: found.single(task, subset, name).record() for name in ("auc", "logloss")}
    figures = {}
    for name in ("auc", "logloss"):
        figures[name] = found.score(model, task, subset, name).record()
        figures[f"{name}_gain"] = found.gain(model, task, subset, name).record()
    return figures
