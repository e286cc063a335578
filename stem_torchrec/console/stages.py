"""The stages of a long work as they go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import perf_counter

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stem_torchrec.console.terminal import terminal

_WATCH_S = 0.2


class StageConsole:
    """Shows the stages of a long work: a bar each on a terminal, and a line each when done.

    Args:
        in_logs: the lines are wanted where there is no terminal.
    """

    def __init__(self, *, in_logs: bool = True) -> None:
        self._console = terminal(stderr=True)
        self._console.quiet = not (in_logs or self._console.is_terminal)

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, done: Callable[[], float]) -> Iterator[None]:
        """A bar over the block, and then a line; ``done`` gives its share, as in ``watch``."""
        start = perf_counter()
        with self.watch(name, done):
            yield
        self._console.print(Text(f"{name}: {perf_counter() - start:.1f} s"), soft_wrap=True)

    @contextmanager
    def watch(self, name: str, done: Callable[[], float]) -> Iterator[None]:
        """A bar over the block with the time left, on a terminal; nothing in a log.

        Args:
            done: its share, 0 to 100, below 0 if unknown; called from another thread.
        """
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
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
