"""Predictions and evaluations as they are made: rows, rows/s, time left."""

from time import perf_counter
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from stem_torchrec.console.terminal import terminal


class PredictionConsole:
    """A progress line on a terminal; nothing in a log."""

    def __init__(self) -> None:
        console = terminal(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._line = self._progress.add_task("starting", total=None)
        self._start = perf_counter()

    def __enter__(self) -> "PredictionConsole":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, done: int, total: int | None) -> None:
        """Rows that are predicted, and how many there are, where that is known."""
        speed = done / max(perf_counter() - self._start, 1e-9)
        text = f"{done:,} rows, {speed:,.0f} rows/s"
        self._progress.update(self._line, description=text, completed=done, total=total)
