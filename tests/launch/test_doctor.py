"""doctor: every check passes here, and each problem is named with what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from stem_torchrec.cli import main
from stem_torchrec.training import doctor


def test_every_check_is_ok_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--nproc", "2", "--distributed.device", "cpu", "--run.dir", str(tmp_path / "run")]
    code = main(["doctor", *options])
    lines = capfd.readouterr().out.splitlines()
    assert code == 0, lines
    assert len(lines) == 9
    assert all(line.startswith("ok ") for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_versions_that_do_not_fit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"torch": "2.13.0", "fbgemm-gpu-cpu": "1.7.0", "torchrec": "1.7.0"}
    monkeypatch.setattr("stem_torchrec.training.doctor.installed", found.get)
    monkeypatch.setattr("stem_torchrec.launch.versions.installed", found.get)
    assert main(["doctor", "--distributed.device", "cpu"]) == 1
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("problem versions: ")
    assert "FBGEMM 1.7 needs torch 2.12; launch/setup.sh --force" in last


def test_a_disk_without_room_or_leave_to_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "MiB/s written" in doctor.disk(tmp_path / "not" / "there")
    with monkeypatch.context() as patch:
        patch.setattr(doctor, "LEAST_FREE_GIB", 1e9)
        with pytest.raises(doctor.Problem, match=r"GiB free at .*make room"):
            doctor.disk(tmp_path)

    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refused)
    with pytest.raises(doctor.Problem, match="Permission denied; choose another"):
        doctor.disk(tmp_path)


def test_fewer_devices_than_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(doctor.Problem, match="1 CUDA devices for 2 ranks"):
        doctor.devices("cuda", 2)


def test_a_failing_rank_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("connection refused")

    monkeypatch.setattr("stem_torchrec.launch.launcher.run_workers", fails)
    with pytest.raises(doctor.Problem, match="connection refused; GLOO_SOCKET_IFNAME"):
        doctor.all_reduce("cpu", 2)


@pytest.mark.parametrize("options", [["--nproc", "0"], ["--train.epochs", "2"]])
def test_mistakes(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *options]) == 2
    assert "error: " in capsys.readouterr().err


def test_neither_the_command_line_nor_a_rank_imports_an_engine_of_prepare() -> None:
    """DuckDB's bindings complain at the end of a process that holds on to what it has imported."""
    code = (
        "import sys; from stem_torchrec.cli import _parser; _parser(); "
        "assert not {'duckdb', 'pyarrow', 'torch'} & set(sys.modules), 'cli'; "
        "import stem_torchrec.training.doctor_workers; assert 'duckdb' not in sys.modules, 'ranks'"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
