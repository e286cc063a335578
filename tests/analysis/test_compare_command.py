"""The command end to end: training, going on where it stopped, a failed run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.analysis import training_process
from stem_torchrec.checkpoint.manifest import Manifest, write_manifest
from stem_torchrec.cli import main
from tests.support.forked import commands_are_forked
from tests.support.prepared import TASKS, small_config, small_data

COMBINATIONS = ("stem_net equal model.gate_input=both", "stem_net equal model.gate_input=task")


class Comparison:
    """The command on a small data set, and what it says."""

    def __init__(self, folder: Path) -> None:
        data = small_data(folder / "data", train_rows=700)
        self.config = small_config(folder / "c.yaml", data, folder / "unused")
        self.out = folder / "out"

    def run(self, *more: str) -> int:
        command = ["compare", "--config", str(self.config), "--models", "stem_net"]
        command += ["--vary", "model.gate_input=both;task", "--seeds", "2", "--parallel", "2"]
        return main([*command, "--out", str(self.out), "--train.max_steps", "3", *more])

    def data(self) -> dict[str, Any]:
        return json.loads((self.out / "compare.json").read_text())

    def run_dir(self, gate_input: str, seed: int) -> Path:
        return self.out / "runs" / f"stem_net-equal-model.gate_input={gate_input}-seed{seed}"


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with commands_are_forked(training_process):
        yield


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    found = Comparison(tmp_path_factory.mktemp("compare"))
    assert found.run() == 0
    return found


def without_test_record(run_dir: Path) -> dict[str, Any]:
    """Take the run's last record, that of the test split, away and return it."""
    file = run_dir / "metrics.jsonl"
    *lines, last = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines))
    assert json.loads(last)["split"] == "test"
    return json.loads(last)


def test_figures_are_those_of_the_runs(comparison: Comparison) -> None:
    data = comparison.data()
    assert [row["combination"] for row in data["rows"]] == list(COMBINATIONS)
    for row, gate_input in zip(data["rows"], ("both", "task"), strict=True):
        assert row["seeds"] == [0, 1]
        for seed in (0, 1):
            file = comparison.run_dir(gate_input, seed) / "metrics.jsonl"
            records = [json.loads(line) for line in file.read_text().splitlines()]
            assert records[-1]["split"] == "test"
            trained = [record for record in records if record["kind"] == "train"][-1]
            assert trained["step"] == 3
            assert row["auc_mean"]["values"][seed] == records[-1]["auc_mean"]
            assert row["qps"]["values"][seed] == trained["qps_total"]
            assert row["peak_memory_bytes"]["values"][seed] == trained["peak_memory_bytes"]
            for task in TASKS:
                for name in ("auc", "ne", "logloss"):
                    assert row[name][task]["values"][seed] == records[-1][name][task]
    assert data["rows"][0]["auc_mean"]["std"] > 0
    assert data["rows"][0]["auc_mean"] != data["rows"][1]["auc_mean"]
    assert data["data"]["samples"]["train"] == 700
    assert "--vary 'model.gate_input=both;task'" in data["command"]
    assert "--train.max_steps 3" in data["command"]
    assert {path.name for path in comparison.out.iterdir()} >= {"compare.md", "compare.html"}


def test_what_is_finished_is_not_run_again(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    before = comparison.data()
    assert comparison.run() == 0
    said = capsys.readouterr()
    assert "started" not in said.err
    assert said.err.count("there already") == 4
    assert "[4/4] stem_net equal model.gate_input=task seed 1  auc 0." in said.err
    assert "single_task" in said.err
    assert comparison.data() == before
    for combination in COMBINATIONS:
        assert combination in said.out


def test_only_an_unfinished_run_goes_on(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    before = comparison.data()
    record = without_test_record(comparison.run_dir("task", 0))
    assert comparison.run() == 0
    said = capsys.readouterr().err
    assert said.count("started") == 1
    assert "[2/4] stem_net equal model.gate_input=task seed 0  started" in said
    assert said.count("there already") == 3
    assert comparison.data()["rows"] == before["rows"]
    assert without_test_record(comparison.run_dir("task", 0)) == record
    with (comparison.run_dir("task", 0) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def test_other_settings_in_the_same_folder_are_refused(
    comparison: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    before = comparison.data()
    assert comparison.run("--optim.lr", "0.5") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "optim.lr 0.001, wanted 0.5" in said
    assert "--overwrite" in said
    assert comparison.data() == before


def test_a_failed_run_ends_the_command_with_1_after_the_report(
    comparison: Comparison, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = comparison.run_dir("both", 1)
    shutil.copytree(run_dir, tmp_path / "kept")
    without_test_record(run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_3")
    (run_dir / "checkpoints" / "step_3").mkdir()
    write_manifest(run_dir / "checkpoints" / "step_3", Manifest({"step": 3}, ()))
    assert comparison.run() == 1
    said = capsys.readouterr()
    assert "1 of the runs failed: stem_net equal model.gate_input=both seed 1: " in said.err
    assert "Traceback" not in said.err
    assert "1/2" in said.out
    data = comparison.data()
    (failure,) = data["failures"]
    assert failure["run"] == "stem_net equal model.gate_input=both seed 1"
    assert "step_3/manifest.json: it names no tasks" in failure["why"]
    log = Path(failure["log"]).read_text()
    assert failure["why"] in log
    assert "Traceback" not in log
    assert data["rows"][0]["seeds"] == [0]
    assert data["rows"][1]["seeds"] == [0, 1]
    shutil.rmtree(run_dir)
    shutil.copytree(tmp_path / "kept", run_dir)
