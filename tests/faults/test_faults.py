"""Lost workers, signals, hung and failing ranks: a short version of what ``kills.py`` does."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from stem_torchrec.cli import main
from stem_torchrec.stopping.processes import is_there, process_name
from tests.faults.events import events
from tests.faults.jobs import Job, Result, differences
from tests.faults.moments import kill_often
from tests.faults.observed import RANKS
from tests.support.prepared import small_config


def test_killed_ranks_come_back(tmp_path: Path, data: Path, expected: Result) -> None:
    with Job(tmp_path, data, restarts=10) as job:
        result = job.result(kill_often(job, 3, random.Random(3)))
    assert result.kills
    assert differences(result, expected) == [], result.log


def test_sigterm_saves_and_resume_ends_as_if_nothing_had_been(
    tmp_path: Path, data: Path, expected: Result
) -> None:
    with Job(tmp_path, data, restarts=2) as job:
        job.wait_for("step", after=10)
        job.process.send_signal(signal.SIGTERM)
        stopped = job.result()
    assert stopped.code == 0, stopped.log
    assert stopped.final is None
    last = max(stopped.rows)
    assert last < 32
    assert (job.run_dir / "checkpoints" / f"step_{last}").is_dir()
    with Job(tmp_path, data) as job:
        assert differences(job.result(), expected) == []


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_launcher_takes_its_ranks_along(
    tmp_path: Path, data: Path, expected: Result, *, forked: bool
) -> None:
    """They save first: nothing is lost."""
    # The system tells the ranks, too (torch asks it for SIGINT): in short steps they would have
    # stopped by that, before they look whether their launcher is there.
    with Job(tmp_path, data, fault="slow 1 5", forked=forked) as job:
        job.wait_for("step", after=10)
        ranks = [process_name(events(tmp_path, rank)[-1].process) for rank in range(RANKS)]
        job.process.kill()
        while any(is_there(rank) for rank in ranks):
            time.sleep(0.05)
        stopped = job.result()
    assert stopped.log.count("has gone: this job is stopped") in (1, 2)  # one may stop both
    last = max(stopped.rows)
    assert last < 32
    assert (job.run_dir / "checkpoints" / f"step_{last}").is_dir()
    assert not (job.run_dir / ".lock").exists()
    with Job(tmp_path, data) as job:
        assert differences(job.result(), expected) == []


def test_a_second_job_is_refused_and_changes_nothing(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Job(tmp_path, data, options=["--train.epochs", "4000"]) as job:
        job.wait_for("step", after=10)
        before = (job.run_dir / "config.yaml").read_text()
        config = str(tmp_path / "config.yaml")
        for existing in ("--resume", "--overwrite"):
            assert main(["train", "--config", config, existing, "--run.seed", "7"]) == 2
            assert "is being written by process" in capsys.readouterr().err
        assert (job.run_dir / "config.yaml").read_text() == before
        job.process.send_signal(signal.SIGTERM)
        assert job.result().code == 0
    assert not (job.run_dir / ".lock").exists()


def test_a_hung_rank_ends_the_job_with_every_ranks_stack(tmp_path: Path, data: Path) -> None:
    options = ["--distributed.timeout_s", "8"]
    with Job(tmp_path, data, options=options, fault="hang 1 5") as job:
        result = job.result()
    assert result.code == 1
    assert "a step has not ended within distributed.timeout_s = 8 s" in result.log
    assert "rank 0: a step" in result.log
    assert "rank 1: a step" in result.log
    assert "in _fault" in result.log  # where rank 1 hangs
    assert "in all_reduce" in result.log or "in progress" in result.log


def test_a_rank_that_throws_ends_all(tmp_path: Path, data: Path) -> None:
    with Job(tmp_path, data, fault="throw 1 5") as job:
        result = job.result()
    assert result.code == 1
    assert "ValueError: this rank broke" in result.log


def test_bad_numbers_end_the_run_with_the_batch(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "config.yaml", data, tmp_path / "run")
    options = ["--optim.lr", "1000000", "--optim.optimizer", "sgd"]
    options += ["--embedding.lr", "1000000", "--embedding.optimizer", "sgd"]
    options += ["--train.max_skipped_steps", "3"]
    assert main(["train", "--config", str(config), *options]) == 2
    assert "train.max_skipped_steps: 3 steps in a row" in capsys.readouterr().err
    found = torch.load(tmp_path / "run" / "bad_batch_rank0.pt")
    assert set(found["losses"]) == {"click", "like"}
    assert not all(torch.tensor(list(found["losses"].values())).isfinite())
    assert found["batch"]["labels"].shape == (128, 2)
    assert found["batch"]["ids"]["user_id"][0].numel() == 128
