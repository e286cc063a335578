"""A run as it goes on: a live progress line, a line per evaluation."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stem_torchrec.console.terminal import by_task, terminal


class TrainConsole:
    """Shows the records of a run as they come: a progress line, a line per evaluation."""

    def __init__(self) -> None:
        self._console = terminal(stderr=True)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        )
        self._line = self._progress.add_task("starting", total=None)
        self._days = ""
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
            line = self._days + train_line(record)
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
        elif record["kind"] == "stop":
            self._console.print(f"step {record['step']}  {stop_line(record)}")
        elif record["kind"] == "day":
            left = record["days"] - record["number"]
            self._days = f"day {record['day']}, {left} more  "
            self._console.print(day_line(record))
        elif record.get("split") == "valid":
            aucs = by_task(record["auc"])
            self._console.print(f"step {record['step']}  valid  auc {aucs}")
            for note in unlabelled_notes(record):
                self._console.print(f"note: {note}")


def init_lines(record: Mapping[str, Any]) -> Sequence[str]:
    """What a run takes from another one, and everything that it does not."""
    return [
        f"{len(record['loaded'])} tensors start from {record['from']} (init.json lists them); "
        f"{_of_training(record)}",
        *(f"in part: {name}: {rows:,} new rows" for name, rows in record["new_rows"].items()),
        *(f"in part: {name}: the tasks in common" for name in record["in_part"]),
        *(f"initial values: {name}: {why}" for name, why in record["initial"].items()),
        *(f"not used: {name}" for name in record["not_used"]),
        *(f"optimizer starts anew: {name}: {why}" for name, why in _anew(record).items()),
    ]


def _anew(record: Mapping[str, Any]) -> Mapping[str, str]:
    """Weights whose optimizers start anew although the weights do not."""
    if record["optimizers"] == "not loaded":
        return {}
    names = record["optimizers"]["initial"]
    return {name: why for name, why in names.items() if name not in record["initial"]}


def _of_training(record: Mapping[str, Any]) -> str:
    if record["optimizers"] == "not loaded":
        return "optimizers start anew"
    balance = record["balance"]
    goes_on = balance if balance == "loaded" else f"anew ({balance})"
    return f"optimizers go on after {record['steps_before']:,} steps; balancing: {goes_on}"


def day_line(record: Mapping[str, Any]) -> str:
    """A day as the weights of the days before have it."""
    place = f"day {record['day']} ({record['number']}/{record['days']})"
    return f"{place}  auc {by_task(record['auc'])}  ne {by_task(record['ne'])}"


def stop_line(record: Mapping[str, Any]) -> str:
    """Why a run ends before its epochs are done."""
    best = "was never defined"
    if record["best"] is not None:
        best = f"was best at step {record['best_step']} ({record['best']:.4f})"
    waited = f"{record['evaluations']} evaluations ago"
    return f"stops: {record['metric']} {best}, {waited} (eval.patience)"


def train_line(record: Mapping[str, Any]) -> str:
    qps = f"{record['qps']:,.0f} samples/s  " if record["qps"] else ""
    weights = record["balance"].get("weight")
    balance = f"  weight {by_task(weights)}" if weights else ""
    return f"{qps}loss {by_task(record['loss'])}  ne {by_task(record['ne_window'])}{balance}"


def unlabelled_notes(record: Mapping[str, Any]) -> list[str]:
    """A line per task that has no label in the split."""
    return [
        f"{record['split']}: task {task!r} has no label, so no metric of it is defined"
        for task, count in record["labels"].items()
        if count == 0
    ]
