"""What a person sees: a live progress line, tables of results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from stem_torchrec.analysis.report import Table as Cells
    from stem_torchrec.data.prepare.check import Checked

LOG_COLUMNS = 160
_WATCH_S = 0.2
_SHOWN_STATS = {
    *("users", "items", "samples", "fields", "tasks", "positive_ratio", "positive_ratio_by_split"),
    *("observed", "observed_by_split"),
}
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
        elif record["kind"] == "init":
            for line in init_lines(record):
                self._console.print(Text(line), soft_wrap=True)
        elif record.get("split") == "valid":
            aucs = _by_task(record["auc"])
            self._console.print(f"step {record['step']}  valid  auc {aucs}")
            for note in unlabelled_notes(record):
                self._console.print(f"note: {note}")


class StageConsole:
    """Shows the stages of a long work: a bar each on a terminal, and a line each when done.

    Args:
        in_logs: the lines are wanted where there is no terminal.
    """

    def __init__(self, *, in_logs: bool = True) -> None:
        self._console = _console(stderr=True)
        self._console.quiet = not (in_logs or self._console.is_terminal)

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, done: Callable[[], float]) -> Iterator[None]:
        start = perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        progress = Progress(
            *columns,
            console=self._console,
            transient=True,
            get_time=perf_counter,
            disable=not self._console.is_terminal,
        )
        line = progress.add_task(name, total=None)
        ended = Event()

        def watch() -> None:
            while not ended.wait(_WATCH_S):
                share = done()
                if share >= 0:
                    progress.update(line, total=100, completed=share)

        watcher = Thread(target=watch, daemon=True)
        with progress:
            if not progress.disable:
                watcher.start()
            try:
                yield
            finally:
                ended.set()
                if watcher.is_alive():
                    watcher.join()
        self._console.print(Text(f"{name}: {perf_counter() - start:.1f} s"), soft_wrap=True)


def init_lines(record: Mapping[str, Any]) -> Sequence[str]:
    """What a run takes from another one, and everything that it does not."""
    return [
        f"{len(record['loaded'])} tensors start from {record['from']} (init.json lists them); "
        "optimizers start anew",
        *(f"in part: {name}: {rows:,} new rows" for name, rows in record["new_rows"].items()),
        *(f"in part: {name}: the tasks in common" for name in record["in_part"]),
        *(f"initial values: {name}: {why}" for name, why in record["initial"].items()),
        *(f"not used: {name}" for name in record["not_used"]),
    ]


def train_line(record: Mapping[str, Any]) -> str:
    qps = f"{record['qps']:,.0f} samples/s  " if record["qps"] else ""
    weights = record["balance"].get("weight")
    balance = f"  weight {_by_task(weights)}" if weights else ""
    return f"{qps}loss {_by_task(record['loss'])}  ne {_by_task(record['ne_window'])}{balance}"


def print_note(text: str) -> None:
    """A line about what goes on, beside a command's results."""
    _console(stderr=True).print(Text(text), soft_wrap=True)


def print_finding(name: str, text: str, *, ok: bool) -> None:
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
    """What ``prepare`` wrote: sizes, positive ratios, and what else the adapter says."""
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
    console = _console()
    console.print(table)
    console.print(tasks)
    for name in stats:
        if name not in _SHOWN_STATS and stats[name] != {}:
            console.print(Text(f"{name}: {_text(stats[name])}"), soft_wrap=True)


def print_check(checked: "Checked", folder: str) -> None:
    """What a folder without faults holds, one row per split."""
    tasks = checked.tasks
    table = Table("split", "rows", "files", "row groups", *tasks)
    for split in checked.splits:
        counts = (f"{n:,}" for n in (split.rows, split.files, split.row_groups))
        table.add_row(split.name, *counts, *(_figure(split.positive_ratio(t)) for t in tasks))
    console = _console()
    console.print(table)
    console.print("tasks: positive ratio of the observed labels")
    console.print(Text(f"{folder}: no faults"), soft_wrap=True)


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
