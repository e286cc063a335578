"""Bars on a terminal, and what a log has in their place."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

import pytest
from rich.console import Console

from stem_torchrec.cli import main, workers
from stem_torchrec.console import PredictionConsole, StageConsole, prediction, stages
from tests.support.prepared import small_config, small_data


@contextmanager
def stderr(patch: pytest.MonkeyPatch, *, is_terminal: bool) -> Iterator[io.StringIO]:
    """What consoles write, to a terminal or a log of 120 columns."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=120)
    for module in (prediction, stages):
        patch.setattr(module, "terminal", lambda **_: console)
    yield text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_watched_block(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    asked: list[float] = []

    def done() -> float:
        asked.append(25.0 * min(4, len(asked)))
        return asked[-1]

    with stderr(monkeypatch, is_terminal=is_terminal) as text:
        console = StageConsole()
        with console.watch("12 runs", done):
            console.note("run 1 started")
            while is_terminal and len(asked) < 4:
                sleep(0.01)
        with console.stage("count ids", lambda: -1):
            pass
    *lines, last = text.getvalue().splitlines()
    assert "run 1 started" in text.getvalue()
    assert last.endswith("s")
    if is_terminal:
        assert "left" in text.getvalue()
        assert "12 runs" in text.getvalue()
    else:
        assert lines == ["run 1 started"]
        assert last.startswith("count ids: ")
        assert asked == []


@pytest.mark.parametrize("is_terminal", [True, False])
def test_rows_of_an_evaluation(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    with stderr(monkeypatch, is_terminal=is_terminal) as text:
        with PredictionConsole() as console:
            console.show(300, 1200)
        assert ("300 rows" in text.getvalue()) == is_terminal
        assert ("left" in text.getvalue()) == is_terminal


def test_an_evaluation_counts_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int | None]] = []

    class Counting(PredictionConsole):
        def show(self, done: int, total: int | None) -> None:
            shown.append((done, total))

    monkeypatch.setattr(workers, "PredictionConsole", Counting)
    run_dir = tmp_path / "run"
    config = small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), run_dir)
    assert main(["train", "--config", str(config), "--train.max_steps", "1"]) == 0
    assert shown == []
    assert main(["evaluate", "--run", str(run_dir), "--split", "valid"]) == 0
    assert shown == [(128, 301), (256, 301), (301, 301)]
