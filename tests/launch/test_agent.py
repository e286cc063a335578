"""The rank that is reported is the one that failed, not one that has only lost it."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from stem_torchrec.errors import WorkerError
from stem_torchrec.launch import launcher
from stem_torchrec.launch.failures import all_failures
from stem_torchrec.launch.launcher import run_workers
from stem_torchrec.stopping.processes import is_there, process_name


def failing(folder: Path, killed: bool) -> None:
    """Rank 1 fails or is killed; rank 0 fails as soon as it is gone."""
    if os.environ["RANK"] == "1":
        written = folder / "written"
        written.write_text(str(os.getpid()))
        written.rename(folder / "process")
        time.sleep(1)  # rank 0 has read it
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("this rank broke")
    while not (folder / "process").exists():
        time.sleep(0.01)
    rank_1 = process_name(int((folder / "process").read_text()))
    while is_there(rank_1):
        time.sleep(0.01)
    raise RuntimeError("Connection closed by peer")


@pytest.mark.parametrize(
    ("killed", "told"),
    [(False, "ValueError: this rank broke"), (True, "exit code -9): Signal 9 (SIGKILL) received")],
)
def test_both_have_ended_when_the_launcher_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, killed: bool, told: str
) -> None:
    def slow(monitor_interval: float, **options: Any) -> LaunchConfig:
        return LaunchConfig(monitor_interval=2.0, **options)

    monkeypatch.setattr(launcher, "LaunchConfig", slow)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(WorkerError, match="rank 1 failed") as failed:
        run_workers(2, failing, tmp_path, killed)
    assert told in str(failed.value)


def context(folder: Path) -> Any:
    files = {rank: str(folder / f"error_{rank}.json") for rank in range(4)}
    return SimpleNamespace(error_files=files, pids=lambda: {rank: 100 + rank for rank in range(4)})


def report(folder: Path, rank: int, at: float) -> ProcessFailure:
    file = folder / f"error_{rank}.json"
    file.write_text(f'{{"message": {{"message": "of {rank}", "extraInfo": {{"timestamp": "7"}}}}}}')
    os.utime(file, (at, at))
    return ProcessFailure(rank, 100 + rank, 1, str(file))


def test_the_order_is_that_of_the_error_files(tmp_path: Path) -> None:
    """Though they are of one second, and the launcher has found only the last."""
    found = {0: report(tmp_path, 0, 7.3)}
    report(tmp_path, 1, 7.2)
    report(tmp_path, 2, 7.1)
    failures = all_failures(context(tmp_path), found, {})
    assert [*failures] == [2, 1, 0]
    assert min(failures.values(), key=lambda failure: failure.timestamp) is failures[2]
    assert "of 2" in str(failures[2].error_file_data)


def test_a_killed_rank_is_first_unless_it_has_failed_before(tmp_path: Path) -> None:
    found = {0: report(tmp_path, 0, 7.3)}
    report(tmp_path, 1, 7.2)
    failures = all_failures(context(tmp_path), found, {3: -11, 0: -6})
    assert [*failures] == [3, 1, 0]
    assert failures[3].message == "Signal 11 (SIGSEGV) received by PID 103"


def test_one_that_was_ended_while_it_wrote_is_left_out(tmp_path: Path) -> None:
    found = {0: report(tmp_path, 0, 7.3)}
    (tmp_path / "error_1.json").write_text('{"mess')
    assert [*all_failures(context(tmp_path), found, {})] == [0]
