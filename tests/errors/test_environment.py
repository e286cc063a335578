"""Errors of the machine as one line."""

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch

from stem_torchrec import cli
from stem_torchrec.errors import (
    CheckpointError,
    EnvironmentFailure,
    environment_failure,
    environment_failures,
)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_the_machine_is_told_with_the_file(number: int) -> None:
    error = OSError(number, os.strerror(number), "/runs/a/plan.txt")
    assert str(environment_failure(error)) == f"/runs/a/plan.txt: {os.strerror(number)}"
    bare = OSError(number, os.strerror(number))
    assert str(environment_failure(bare)) == os.strerror(number)
    assert str(environment_failure(bare, Path("here"))) == f"here: {os.strerror(number)}"


def test_no_place_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/no/such/folder"])
    match = "^No usable temporary directory found in"
    with pytest.raises(EnvironmentFailure, match=match), environment_failures():
        tempfile.mkdtemp()


def test_memory_is_told() -> None:
    assert str(environment_failure(MemoryError())) == "not enough memory"
    match = r"not enough memory: .*allocate memory"
    with pytest.raises(EnvironmentFailure, match=match), environment_failures():
        torch.empty(1 << 60, dtype=torch.uint8)
    gpu = environment_failure(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"))
    assert str(gpu) == "not enough memory: CUDA out of memory. Tried 2 GiB."


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no", "x"), ValueError("x"), KeyError("x")])
def test_others_pass(error: Exception) -> None:
    assert environment_failure(error) is None
    with pytest.raises(type(error)), environment_failures():
        raise error


def test_a_failure_stays_as_it_is() -> None:
    first = EnvironmentFailure("a: full")
    assert environment_failure(first, "b") is first
    assert str(pickle.loads(pickle.dumps(first))) == "a: full"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "", "out/a.md"), "error: out/a.md: No space left on device\n"),
        (MemoryError(), "error: not enough memory\n"),
        (CheckpointError("step 3: full"), "error: step 3: full\n"),
    ],
)
def test_the_command_line_ends_with_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("stem_torchrec.cli.plan.load_config", fails)
    assert cli.main(["plan", "--config", "c.yaml", "--world-size", "2"]) == 1
    assert capsys.readouterr().err == line


def test_ctrl_c_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stem_torchrec.cli.plan.load_config", interrupted)
    assert cli.main(["plan", "--config", "c.yaml"]) == 130
    assert capsys.readouterr().err == "stopped by SIGINT\n"
