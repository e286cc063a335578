"""What a command ends with: tables of results."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table
from rich.text import Text

from stem_torchrec.console.terminal import figure, print_note, terminal
from stem_torchrec.console.training import unlabelled_notes

if TYPE_CHECKING:
    from stem_torchrec.prepare.check import Checked

METRICS = ("logloss", "ne", "auc", "gauc", "calibration")
_SHOWN_STATS = {
    *("users", "items", "samples", "fields", "tasks", "positive_ratio", "positive_ratio_by_split"),
    *("observed", "observed_by_split", "features"),
}


class Cells(Protocol):
    """A table as texts; ``best`` are (row, column) of the cells to stress."""

    @property
    def columns(self) -> Sequence[str]: ...

    @property
    def rows(self) -> Sequence[Sequence[str]]: ...

    @property
    def best(self) -> Collection[tuple[int, int]]: ...


def print_evaluation(record: Mapping[str, Any], qps: float | None = None) -> None:
    """The metrics of one split as a table, one row per task."""
    epoch = f" (epoch {record['epoch']})" if record.get("epoch") is not None else ""
    weights = f"weights of step {record['step']}{epoch}"
    title = f"{record['split']}, {record['samples']:,} samples, {weights}"
    table = Table("task", *METRICS, "labels", title=title)
    for task in record["auc"]:
        figures = [figure(record[name][task]) for name in METRICS]
        table.add_row(task, *figures, f"{record['labels'][task]:,}")
    mean = figure(record["auc_mean"])
    table.add_row("mean", *(mean if name == "auc" else "" for name in METRICS), "", style="bold")
    console = terminal()
    console.print(table)
    for note in unlabelled_notes(record):
        print_note(f"note: {note}")
    if qps is not None:
        console.print(f"training: {qps:,.0f} samples/s (all ranks, after warm-up)")


def print_stats(stats: Mapping[str, Any], folder: str) -> None:
    """What ``prepare`` wrote: sizes, positive ratios, and what else the adapter says."""
    from stem_torchrec.data.dense_scale import DENSE_STATS, Scale, scale_warnings

    samples: Mapping[str, int] = stats["samples"]
    sizes = [name for name in ("users", "items") if name in stats]
    table = Table(*sizes, *samples, "fields", "tasks", title=folder)
    counts = [*(stats[name] for name in sizes), *samples.values(), stats["fields"]]
    table.add_row(*(f"{count:,}" for count in counts), str(len(stats["tasks"])))
    tasks = Table("task", "positive", *(f"in {split}" for split in samples), "labels")
    for task in stats["tasks"]:
        ratios = [stats["positive_ratio"], *stats["positive_ratio_by_split"].values()]
        shares = ["-" if r[task] is None else f"{r[task]:.2%}" for r in ratios]
        tasks.add_row(task, *shares, f"{stats['observed'][task]:,}")
    console = terminal()
    console.print(table)
    console.print(tasks)
    if "features" in stats:
        _print_features(stats["features"], tuple(samples))
    for name in stats:
        if name == DENSE_STATS:
            scales = {feature: Scale(**found) for feature, found in stats[name].items()}
            _print_warnings(scale_warnings(scales))
        elif name not in _SHOWN_STATS and stats[name] != {}:
            console.print(Text(f"{name}: {_text(stats[name])}"), soft_wrap=True)


def _print_features(features: Mapping[str, Any], splits: Sequence[str]) -> None:
    """What each feature holds; those that tell nothing are named."""
    ids = [f"id 0 in {split}" for split in splits]
    table = Table("feature", "values", "null", *ids, title="in train")
    for name, found in features.items():
        shares = found.get("id_0_share", {})
        cells = [f"{shares[split]:.2%}" if split in shares else "-" for split in splits]
        of_values = ("-", "-")
        if "values" in found:
            of_values = f"{found['values']:,}", f"{found['null_share']:.2%}"
        table.add_row(name, *of_values, *cells)
    terminal().print(table)
    constant = [name for name, found in features.items() if found.get("constant")]
    _print_warnings([f"feature {name!r}: constant in train, it tells nothing" for name in constant])


def print_check(checked: "Checked", folder: str) -> None:
    """What a folder without faults holds, one row per split."""
    tasks = checked.tasks
    table = Table("split", "rows", "files", "row groups", *tasks)
    for split in checked.splits:
        counts = (f"{n:,}" for n in (split.rows, split.files, split.row_groups))
        table.add_row(split.name, *counts, *(figure(split.positive_ratio(t)) for t in tasks))
    console = terminal()
    console.print(table)
    console.print("tasks: positive ratio of the observed labels")
    _print_warnings(checked.warnings)
    console.print(Text(f"{folder}: no faults"), soft_wrap=True)


def print_export(precision: str, notes: Mapping[str, Any], folder: str) -> None:
    """What an export is worth: its metrics beside the run's, and its size."""
    console = terminal()
    if metrics := notes.get("metrics"):
        run, export = metrics["run"], metrics["export"]
        table = Table("task", *(f"{name} of {of}" for name in run for of in ("run", "export")))
        for task in next(iter(run.values())):
            cells = [figures[name][task] for name in run for figures in (run, export)]
            table.add_row(task, *("-" if cell is None else f"{cell:.6f}" for cell in cells))
        console.print(table)
    else:
        print_note("the test split is not there: the export was not compared with the run")
    tables, dense = (notes["bytes"][part] / 1e6 for part in ("tables", "dense"))
    text = f"tables of {precision} {tables:,.1f} MB, dense part {dense:,.1f} MB"
    console.print(Text(f"{folder}: step {notes['step']}, {text}"), soft_wrap=True)


def _print_warnings(texts: Sequence[str]) -> None:
    for text in texts:
        print_note(f"warning: {text}")


def print_report(title: str, table: Cells, files: Sequence[Path]) -> None:
    """A report's main table, its best cells bold, and where the rest is."""
    shown = Table(*table.columns, title=title)
    for i, row in enumerate(table.rows):
        shown.add_row(*(Text(c, "bold" if (i, j) in table.best else "") for j, c in enumerate(row)))
    console = terminal()
    console.print(shown)
    for file in files:
        console.print(Text(f"written: {file}"), soft_wrap=True)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
