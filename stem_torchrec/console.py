"""What a person sees: a live progress line, tables of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stem_torchrec.analysis.report import Table as Cells

LOG_COLUMNS = 160
METRICS = ("logloss", "ne", "auc", "gauc", "calibration")


class TrainConsole:
    """Shows the records of a run as they come: a progress line, a line per evaluation."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
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

    def warn(self, messages: Sequence[str]) -> None:
        for message in messages:
            self._console.print(f"warning: {message}", style="yellow")

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
            for note in unlabelled_notes(record):
                self._console.print(f"note: {note}")


def train_line(record: Mapping[str, Any]) -> str:
    qps = f"{record['qps']:,.0f} samples/s  " if record["qps"] else ""
    weights = record["balance"].get("weight")
    balance = f"  weight {_by_task(weights)}" if weights else ""
    return f"{qps}loss {_by_task(record['loss'])}  ne {_by_task(record['ne_window'])}{balance}"


def print_note(text: str) -> None:
    """A line about what goes on, beside a command's results."""
    _console(stderr=True).print(Text(text), soft_wrap=True)


def print_check(name: str, text: str, *, ok: bool) -> None:
    """A line of ``doctor``."""
    mark = Text("ok     ", "green") if ok else Text("problem", "red")
    _console().print(mark, Text(f"{name}: {text}"), soft_wrap=True)


def unlabelled_notes(record: Mapping[str, Any]) -> list[str]:
    """A line per task that has no label in the split."""
    return [
        f"{record['split']}: task {task!r} has no label, so no metric of it is defined"
        for task, count in record["labels"].items()
        if count == 0
    ]


def print_evaluation(record: Mapping[str, Any], qps: float | None = None) -> None:
    """The metrics of one split as a table, one row per task."""
    title = f"{record['split']}, {record['samples']:,} samples, step {record['step']}"
    table = Table("task", *METRICS, "labels", title=title)
    for task in record["auc"]:
        figures = [_figure(record[name][task]) for name in METRICS]
        table.add_row(task, *figures, f"{record['labels'][task]:,}")
    mean = _figure(record["auc_mean"])
    table.add_row("mean", *(mean if name == "auc" else "" for name in METRICS), "", style="bold")
    console = _console()
    console.print(table)
    for note in unlabelled_notes(record):
        print_note(f"note: {note}")
    if qps is not None:
        console.print(f"training: {qps:,.0f} samples/s (all ranks, after warm-up)")


def print_stats(stats: Mapping[str, Any], folder: str) -> None:
    """What ``prepare`` wrote."""
    table = Table("", "", title=folder, show_header=False)
    for name, value in stats.items():
        table.add_row(name, _text(value))
    _console().print(table)


def print_report(title: str, table: "Cells", files: Sequence[Path]) -> None:
    """A report's main table, its best cells bold, and where the rest is."""
    shown = Table(*table.columns, title=title)
    for i, row in enumerate(table.rows):
        shown.add_row(*(Text(c, "bold" if (i, j) in table.best else "") for j, c in enumerate(row)))
    console = _console()
    console.print(shown)
    for file in files:
        console.print(Text(f"written: {file}"), soft_wrap=True)


def _console(*, stderr: bool = False) -> Console:
    """The terminal, or a log wide enough that no line is broken."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=LOG_COLUMNS)


def _by_task(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{task} {_figure(value)}" for task, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
