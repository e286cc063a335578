"""The terminal, or a log in its place, and how figures look on it."""

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

LOG_COLUMNS = 160


def terminal(*, stderr: bool = False) -> Console:
    """The terminal, or a log wide enough that no line is broken."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=LOG_COLUMNS)


def print_note(text: str) -> None:
    """A line about what goes on, beside a command's results."""
    terminal(stderr=True).print(Text(text), soft_wrap=True)


def print_start(text: str) -> None:
    """What begins and takes seconds, for a person who waits; nothing in a log."""
    console = terminal(stderr=True)
    if console.is_terminal:
        console.print(Text(f"{text} …", "dim"), soft_wrap=True)


def print_finding(name: str, text: str, *, ok: bool) -> None:
    """A line of ``doctor``."""
    mark = Text("ok     ", "green") if ok else Text("problem", "red")
    terminal().print(mark, Text(f"{name}: {text}"), soft_wrap=True)


def by_task(values: Mapping[str, float | None]) -> str:
    return " ".join(f"{task} {figure(value)}" for task, value in values.items())


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
