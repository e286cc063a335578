"""A search on a small data set, whose trainings are scripts that stand for them."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.analysis import training_process
from stem_torchrec.analysis.tune.tuning import Request
from tests.support.prepared import small_config, small_data

SPACE = "optim.lr: {low: 0.001, high: 0.1, log: true}\nmodel.gate_input: [both, task]\n"

TRAINING = """
import json, pathlib, sys, time, yaml
config = yaml.safe_load(open(sys.argv[sys.argv.index("--config") + 1]))
folder = pathlib.Path(config["run"]["dir"])
number = int(folder.name[-4:])
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text("")
def evaluated(step, auc):
    with (folder / "metrics.jsonl").open("a") as file:
        record = {"kind": "eval", "split": "valid", "step": step, "auc_mean": auc}
        file.write(json.dumps(record) + "\\n")
"""
"""What every script starts with: its config, its folder, and how to tell of an evaluation."""

BY_RATE = "evaluated(1, 0.5); evaluated(2, 0.5 + config['optim']['lr'])"
"""The larger the learning rate, the better."""


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    return small_config(folder / "c.yaml", small_data(folder / "data"), folder / "unused")


@pytest.fixture
def request_for(config: Path, tmp_path: Path) -> Callable[..., Request]:
    """A request for four trials, with changes; ``space`` is the file's text."""

    def made(space: str = SPACE, **changes: object) -> Request:
        file = tmp_path / "space.yaml"
        file.write_text(space)
        return replace(Request(config, file, tmp_path / "out", trials=4), **changes)  # type: ignore[arg-type]

    return made


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Have trainings be a script from now on; gives the commands that are started."""
    popen = subprocess.Popen

    def use(script: str) -> list[list[str]]:
        commands: list[list[str]] = []

        def start(command: list[str], **keywords: object) -> "subprocess.Popen[bytes]":
            commands.append(command)
            words = [sys.executable, "-c", TRAINING + script, *command[3:]]
            return popen(words, **keywords)  # type: ignore[call-overload]

        monkeypatch.setattr(training_process.subprocess, "Popen", start)
        return commands

    return use
