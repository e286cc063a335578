"""One job at a time in a folder, on a disk and with a lease in place of the system's lock."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.storage.lock import folder_lock, lease
from stem_torchrec.storage.lock.folder_lock import Locked, locked, refuse_locked
from stem_torchrec.storage.lock.holder import Holder

HELD = """
import sys
from pathlib import Path
from stem_torchrec.storage.lock.folder_lock import locked
from stem_torchrec.storage.lock.holder import Holder
with locked("run.dir", Path(sys.argv[1]), Holder.this(job=sys.argv[2] or None)):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path, job: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, str(folder), job],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=["flock", "lease"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A disk with locks, or one without, where a lease stands for them."""
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "LEASE_S", 1.0)
    if request.param == "lease":

        def none(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(folder_lock.fcntl, "flock", none)
    return str(request.param)


def test_a_second_job_is_refused_with_the_holder(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "deep" / "run"
    with locked("run.dir", folder, Holder.this()):
        content = (folder / ".lock").read_text()
        with (
            pytest.raises(Locked, match=rf"run\.dir: .*process {os.getpid()} on .* since 20"),
            locked("run.dir", folder, Holder.this()),
        ):
            pass
        if how == "flock":
            assert (folder / ".lock").read_text() == content
    assert list(folder.iterdir()) == []
    with locked("run.dir", folder, Holder.this()):
        pass


def test_it_goes_with_a_killed_process(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        for _ in range(2):
            with (
                pytest.raises(Locked, match=f"process {process.pid} "),
                locked("run.dir", tmp_path, Holder.this()),
            ):
                pass
        with pytest.raises(Locked):
            refuse_locked("run.dir", tmp_path, Holder.this())
    assert (tmp_path / ".lock").exists()
    refuse_locked("run.dir", tmp_path, Holder.this())
    with locked("run.dir", tmp_path, Holder.this()):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_life_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Holder.this(job="a")
    with held_elsewhere(tmp_path, "a") as process:
        refuse_locked("run.dir", tmp_path, job)
        monkeypatch.setattr(folder_lock.time, "sleep", lambda _: process.kill())
        with locked("run.dir", tmp_path, job):
            assert "job a" in str(Holder.read((tmp_path / ".lock").read_text()))


def test_between_two_lives_the_launcher_keeps_it(tmp_path: Path, how: str) -> None:
    """As long as it lives: nobody may take the folder while a lost rank is brought back."""
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    job = Holder.this(job="a", launcher=launcher.pid)
    with pytest.raises(ValueError, match="lost"), locked("run.dir", tmp_path, job):
        raise ValueError("lost")
    if how == "flock":
        with pytest.raises(Locked), locked("run.dir", tmp_path, Holder.this()):
            pass
    with locked("run.dir", tmp_path, job):
        pass
    with pytest.raises(ValueError, match="lost"), locked("run.dir", tmp_path, job):
        raise ValueError("lost")
    launcher.communicate("\n")
    with locked("run.dir", tmp_path, Holder.this()):
        pass


def test_a_leftover_says_nothing(tmp_path: Path, how: str) -> None:
    for text in ("", "{}", "[1]", "no JSON\n", replace(Holder.this(), process="1 2").text()):
        (tmp_path / ".lock").write_text(text)
        with locked("run.dir", tmp_path, Holder.this()):
            pass


@pytest.mark.parametrize("holds", ["nothing", "a file", "what was there"])
def test_a_refused_job_leaves_no_empty_folder_behind(tmp_path: Path, holds: str) -> None:
    folder = tmp_path / "runs" / "new"
    if holds == "what was there":
        folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="refused"), locked("run.dir", folder, Holder.this()):
        if holds == "a file":
            (folder / "config.yaml").touch()
        raise ValueError("refused")
    assert folder.exists() == (holds != "nothing")
    assert not (folder / ".lock").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"run\.dir"), locked("run.dir", tmp_path, Holder.this()):
        pass
    assert (tmp_path / "other").read_text() == "mine"


def test_looking_does_not_keep_a_job_out(tmp_path: Path) -> None:
    with locked("run.dir", tmp_path, Holder.this()):
        pass
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        closing = ExitStack()
        with pytest.MonkeyPatch.context() as patch, closing:
            patch.setattr(folder_lock.time, "sleep", lambda _: file.close())
            closing.enter_context(locked("run.dir", tmp_path, Holder.this()))


def of_another_host(**changes: str) -> Holder:
    return replace(Holder.this(), host="node7", **changes)


def test_a_lease_of_another_host_that_does_not_beat_is_taken(tmp_path: Path, how: str) -> None:
    (tmp_path / ".lock").write_text(of_another_host().text() + "token 1\n")
    with locked("run.dir", tmp_path, Holder.this()):
        pass


@pytest.mark.parametrize("how", ["lease"], indirect=True)
def test_a_lease_of_another_host_that_beats_is_not(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, beats = tmp_path / ".lock", iter(range(100))
    file.write_text(of_another_host().text() + "token\n")

    def beat(_: float) -> None:
        file.write_text(of_another_host().text() + f"token {next(beats)}\n")

    monkeypatch.setattr(lease.time, "sleep", beat)
    with pytest.raises(Locked, match="on node7"), locked("run.dir", tmp_path, Holder.this()):
        pass
    assert "node7" in file.read_text()


@pytest.mark.parametrize("how", ["lease"], indirect=True)
def test_of_two_at_once_the_last_writer_has_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = of_another_host().text() + "token 1\n"
    monkeypatch.setattr(lease.time, "sleep", lambda _: (tmp_path / ".lock").write_text(other))
    with pytest.raises(Locked, match="on node7"), locked("run.dir", tmp_path, Holder.this()):
        pass
    assert (tmp_path / ".lock").read_text() == other


LOSES = """
import sys, time
from pathlib import Path
from stem_torchrec.storage.lock import lease
from stem_torchrec.storage.lock.holder import Holder
lease.SETTLE_S = lease.BEAT_S = 0.05
file = Path(sys.argv[1])
with lease.leased(file, Holder.this(), lambda other: UserError("held")):
    file.write_text(sys.argv[2])
    time.sleep(60)
"""


def test_who_has_lost_its_lease_ends(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOSES, tmp_path / ".lock", of_another_host().text()],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "the folder has been taken by process" in result.stderr
    assert "on node7" in result.stderr
