"""Seven days of real rows, prepared one by one, on two ranks: kills in between change nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.kuairand_days import DAYS, SLICE, prepare_day_after_day, write_raw_days
from tests.training.test_exact_resume import saved
from tests.training.test_replay import records

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300


def start(data: Path, run_dir: Path, *more: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-m", "stem_torchrec", "replay", "--nproc", "2"]
    words += ["--config", str(ROOT / "configs" / "kuairand_slice.yaml"), "--run.dir", str(run_dir)]
    words += ["--tasks.names", "[click, long_view, comment_stay]"]
    words += ["--data.path", str(data), "--train.batch_size", "64", "--train.log_every", "1"]
    words += ["--checkpoint.every", "5", "--distributed.device", "cpu", *more]
    with run_dir.with_suffix(".log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, stdout=log, stderr=log, env=environment)


def ranks_of(launcher: int) -> Iterator[int]:
    for number in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if b"spawn_main" in Path(f"/proc/{number}/cmdline").read_bytes():
            yield int(number)


def kill_at(process: "subprocess.Popen[bytes]", run_dir: Path, step: int) -> None:
    """SIGKILL a rank once that step has been recorded."""
    end, file = time.monotonic() + TIMEOUT_S, run_dir / "metrics.jsonl"
    while not (file.exists() and last_step(file) >= step):
        assert process.poll() is None, run_dir.with_suffix(".log").read_text()
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(next(ranks_of(process.pid)), signal.SIGKILL)


def last_step(file: Path) -> int:
    *_, last = [0, *(json.loads(line)["step"] for line in file.read_text().split("\n")[:-1])]
    return last


@pytest.mark.slow
def test_two_kills_in_seven_days(tmp_path: Path) -> None:
    if not SLICE.is_dir():
        pytest.skip(f"{SLICE} is not there: the slice is not part of the repository")
    data = tmp_path / "data"
    prepare_day_after_day(write_raw_days(tmp_path), data, DAYS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(data, whole).wait(TIMEOUT_S) == 0
    job = start(data, killed, "--max-restarts", "2")
    for step in (21, 68):
        kill_at(job, killed, step)
    assert job.wait(TIMEOUT_S) == 0, killed.with_suffix(".log").read_text()
    ours, theirs = records(killed), records(whole)
    assert ours == theirs
    found = [record["day"] for (kind, _), record in theirs.items() if kind == "day"]
    assert found == list(DAYS)
    left, right = saved(killed), saved(whole)
    assert left.keys() == right.keys()
    for name, value in left.items():
        if "/rng/python" in name or "/rng/numpy" in name:
            continue  # no step draws from these, and every process starts them anew
        same = torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
        assert same, name
