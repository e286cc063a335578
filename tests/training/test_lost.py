"""What a run has lost when it ends: its last checkpoint, its records, a split of its data."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.checkpoint import save as saving
from stem_torchrec.checkpoint import saved_steps
from stem_torchrec.cli import main
from stem_torchrec.config import Config
from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import CheckpointError, EnvironmentFailure, SplitRefused
from stem_torchrec.runs.records import read_records
from stem_torchrec.training.job import train
from stem_torchrec.training.trainer import Outcome
from tests.runs.test_records import room_of
from tests.support.prepared import small_config, small_data

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16  # of one epoch on one rank
NOTHING_KEPT = "nothing of what was trained is kept, on a disk or in memory"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("lost") / "data")


@pytest.fixture
def file(data: Path, tmp_path: Path) -> Path:
    """A config of a run that saves after steps 8 and 16."""
    return small_config(tmp_path / "config.yaml", data, tmp_path / "run")


def failing_publish(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, int], bool]) -> None:
    """A disk that is full when some checkpoints are published, by their step and try."""
    publish, tries = saving.publish, dict[int, int]()

    def full(aside: Any, final: Any, manifest: Any) -> None:
        step = manifest.about["step"]
        tries[step] = tries.get(step, 0) + 1
        if fails(step, tries[step]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        publish(aside, final, manifest)

    monkeypatch.setattr(saving, "publish", full)


@pytest.mark.parametrize(
    ("fails", "options", "kept", "steps"),
    [
        (lambda step, _: True, (), NOTHING_KEPT, []),
        (
            lambda step, _: step == STEPS,
            ("--checkpoint.asynchronous", "false"),
            "the newest that is kept is of step 8, from which --resume goes on",
            [8],
        ),
        (
            lambda step, _: step == STEPS,
            ("--checkpoint.on_error", "stop"),
            "the newest that is kept is of step 8, from which --resume goes on",
            [8],
        ),
        (lambda step, count: count == 1, (), None, [STEPS]),
    ],
)
def test_a_run_without_its_last_checkpoint_has_failed(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[[int, int], bool],
    options: tuple[str, ...],
    kept: str | None,
    steps: list[int],
) -> None:
    """Its test figures are shown all the same, and it is tried once more."""
    failing_publish(monkeypatch, fails)
    code = main(["train", "--config", str(file), "--checkpoint.every", "8", *options])
    shown = capsys.readouterr()
    assert "test, 401 samples, weights of step 16 (epoch 1)" in shown.out
    assert saved_steps(file.parent / "run" / "checkpoints") == steps
    if kept is None:
        assert code == 0
        return
    assert code == 1
    reason = f"checkpoint of step {STEPS} failed: rank 0: OSError: [Errno 28] No space left"
    last = shown.err.splitlines()[-1]
    assert last.startswith(f"error: {reason}")
    assert last.endswith(f"; {kept}")


def run_with(
    ranks: Any, file: Path, disturb: Callable[[Config, dict[str, Any]], None]
) -> tuple[Outcome, Config]:
    """A run of 16 steps that is disturbed as its records come."""
    config = load_config(file, ["--checkpoint.every=8", "--eval.every=8"])

    def listen(record: dict[str, Any]) -> None:
        disturb(config, record)

    return train(config, ranks, existing="refuse", listener=listen), config


def at(kind: str, step: int, remove: Callable[[Path], object]) -> Any:
    def disturb(config: Config, record: dict[str, Any]) -> None:
        if (record["kind"], record["step"]) == (kind, step):
            remove(Path(str(config.run.dir)))

    return disturb


def test_records_that_were_deleted_are_said(
    alone: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    remove = at("train", 5, lambda run_dir: (run_dir / "metrics.jsonl").unlink())
    outcome, config = run_with(alone, file, remove)
    assert isinstance(outcome.failure, EnvironmentFailure)
    assert "metrics.jsonl was deleted or replaced while the run went on" in str(outcome.failure)
    assert caplog.text.count("was deleted or replaced") == 1
    assert outcome.test is not None
    assert saved_steps(config.run.dir / "checkpoints")[-1] == STEPS


def test_records_that_were_replaced_are_said(alone: Any, file: Path) -> None:
    def replace(run_dir: Path) -> None:
        (run_dir / "other").write_text("")
        (run_dir / "other").rename(run_dir / "metrics.jsonl")

    outcome, _ = run_with(alone, file, at("train", 5, replace))
    assert isinstance(outcome.failure, EnvironmentFailure)


def test_a_run_folder_that_was_deleted_is_said(alone: Any, file: Path) -> None:
    """The last checkpoint stands in a folder that nothing takes for a run."""
    outcome, config = run_with(alone, file, at("train", 10, shutil.rmtree))
    assert f"{config.run.dir / 'config.yaml'} is no longer there" in str(outcome.failure)
    assert NOTHING_KEPT in str(outcome.failure)
    assert "metrics.jsonl was deleted or replaced" in str(outcome.failure)


def test_checkpoints_that_were_deleted_are_said(
    alone: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = saving.Saver.wait

    def wait_and_remove(saver: saving.Saver) -> None:
        wait(saver)
        if len(read_records(file.parent / "run")) and saver._last is not None:
            shutil.rmtree(file.parent / "run" / "checkpoints", ignore_errors=True)

    monkeypatch.setattr(saving.Saver, "wait", wait_and_remove)
    outcome, config = run_with(alone, file, lambda *_: None)
    assert isinstance(outcome.failure, CheckpointError)
    folder = config.run.dir / "checkpoints"
    expected = f"checkpoint of step {STEPS} is no longer in {folder}; {NOTHING_KEPT}"
    assert str(outcome.failure) == expected


def test_a_split_that_was_deleted_is_not_passed_over(
    alone: Any, file: Path, data: Path, tmp_path: Path
) -> None:
    """What was trained up to there is saved first."""
    shutil.copytree(data, tmp_path / "copy")
    config = load_config(file, [f"--data.path={tmp_path / 'copy'}", "--eval.every=6"])

    def listen(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            shutil.rmtree(tmp_path / "copy" / "valid")

    with pytest.raises(SplitRefused, match=r"valid is not evaluated after step 6: .*valid"):
        train(config, alone, existing="refuse", listener=listen)
    assert saved_steps(config.run.dir / "checkpoints") == [6]


def test_a_disk_that_is_full_at_the_start_is_one_line(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with room_of(10):
        assert main(["train", "--config", str(file), "--train.max_steps", "1"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {file.parent / 'run'}")
    assert line.endswith(": File too large")


def test_workers_leave_the_exit_code_to_their_launcher(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with room_of(8000):  # of records and config, not of tables
        assert main(["train", "--config", str(file), "--nproc", "2"]) == 1
    shown = capfd.readouterr()
    assert "test, 401 samples" in shown.out
    assert NOTHING_KEPT in shown.err.splitlines()[-1]
    assert "Traceback" not in shown.err


@pytest.mark.slow
def test_torchrun_ends_with_the_same_code(file: Path) -> None:
    words = [sys.executable, "launch/torchrun.py", "--nproc-per-node", "2", "--standalone", "-m"]
    words += ["stem_torchrec", "train", "--config", str(file)]
    with room_of(8000):
        result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "test, 401 samples" in result.stdout
    assert NOTHING_KEPT in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
