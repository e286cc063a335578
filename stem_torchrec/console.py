"""What a person sees: a live progress line, tables of results."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

METRICS = ("logloss", "ne", "auc", "gauc", "calibration")


class TrainConsole:
    """Shows the records of a run as they come: a progress line, a line per evaluation."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        )
        self._line = self._progress.add_task("starting", total=None)
        self.qps: float | None = None

    def __enter__(self) -> "TrainConsole":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "train":
            self.qps = record["qps_total"]
            line = train_line(record)
            self._progress.update(
                self._line,
                description=line,
                completed=record["step"],
                total=record["total_steps"],
            )
            if not self._console.is_terminal:
                self._console.print(f"step {record['step']}/{record['total_steps']}  {line}")
        elif record["split"] == "valid":
            aucs = _by_task(record["auc"])
            self._console.print(f"step {record['step']}  valid  auc {aucs}")


def train_line(record: Mapping[str, Any]) -> str:
    qps = f"{record['qps']:,.0f} samples/s  " if record["qps"] else ""
    return f"{qps}loss {_by_task(record['loss'])}  ne {_by_task(record['ne_window'])}"


def print_evaluation(record: Mapping[str, Any], qps: float | None = None) -> None:
    """The metrics of one split as a table, one row per task."""
    title = f"{record['split']}, {record['samples']:,} samples, step {record['step']}"
    table = Table("task", *METRICS, "labels", title=title)
    for task in record["auc"]:
        figures = [_figure(record[name][task]) for name in METRICS]
        table.add_row(task, *figures, f"{record['labels'][task]:,}")
    mean = _figure(record["auc_mean"])
    table.add_row("mean", *(mean if name == "auc" else "" for name in METRICS), "", style="bold")
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    if qps is not None:
        console.print(f"training: {qps:,.0f} samples/s (all ranks, after warm-up)")


def print_stats(stats: Mapping[str, Any], folder: str) -> None:
    """What ``prepare`` wrote."""
    table = Table("", "", title=folder, show_header=False)
    for name, value in stats.items():
        text = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name, text)
    Console(width=None if Console().is_terminal else 100).print(table)


def _by_task(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{task} {_figure(value)}" for task, value in values.items())


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
