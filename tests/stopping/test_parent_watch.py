"""A process ends with the one that it works for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stem_torchrec.stopping.processes import is_there, process_name

CHILD = """
import signal, sys, time
from stem_torchrec.stopping import parent_watch
parent_watch.POLL_S = 0.02
saves = sys.argv[1] == "saves"

def stop(number, frame):
    print("saving", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    open(sys.argv[2], "w").write("saved")

if saves:
    signal.signal(signal.SIGTERM, stop)
parent_watch.end_with_parent()
print("watches", flush=True)
time.sleep(60)
"""

PARENT = """
import subprocess, sys, time
from stem_torchrec.stopping.parent_watch import ends_its_children
with ends_its_children():
    child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
print(child.pid, flush=True)
time.sleep(60)
"""


TORCHRUN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], env={**os.environ, "RANK": "3",
    "TORCHELASTIC_RUN_ID": "none"})
print(child.pid, flush=True)
time.sleep(60)
"""


def started(code: str, *words: object) -> "tuple[subprocess.Popen[str], int]":
    """A parent and the number of its child, which watches it."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, CHILD, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    lines.remove("watches\n")
    return process, int(lines[0])


@pytest.mark.parametrize(
    ("code", "how"), [(PARENT, "saves"), (PARENT, "ends"), (TORCHRUN, "saves")]
)
def test_a_killed_parent_takes_its_child_along(tmp_path: Path, code: str, how: str) -> None:
    process, child = started(code, how, tmp_path / "saved")
    name = process_name(child)
    assert is_there(name)
    process.kill()
    _, errors = process.communicate(timeout=50)  # until the child, too, has closed its output
    while is_there(name):
        time.sleep(0.01)
    rank = "rank 3: " if code == TORCHRUN else ""
    assert f"error: {rank}the process that started this one ({process.pid}) has gone" in errors
    assert errors.count("\n") == 1
    assert (tmp_path / "saved").exists() == (how == "saves")


def test_the_job_of_several_nodes_is_not_stopped_but_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2), ("RESTARTS", 1)):
        name = "TORCHELASTIC_MAX_RESTARTS" if name == "RESTARTS" else name
        monkeypatch.setenv(name, str(value))
    process, child = started(PARENT, "saves", tmp_path / "saved")
    name = process_name(child)
    process.kill()
    _, errors = process.communicate(timeout=50)
    while is_there(name):
        time.sleep(0.01)
    assert "has gone: this process ends" in errors
    assert not (tmp_path / "saved").exists()


def test_a_parent_that_has_gone_before() -> None:
    environment = os.environ | {"STEM_TORCHREC_PARENT": f"{os.getpid()} 12"}
    result = subprocess.run(
        [sys.executable, "-c", CHILD, "ends"], env=environment, capture_output=True, timeout=50
    )
    assert result.returncode == 1


def test_who_works_for_nobody_goes_on() -> None:
    code = CHILD.replace("time.sleep(60)", "time.sleep(0.2)")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STEM_TORCHREC")}
    result = subprocess.run([sys.executable, "-c", code, "ends"], env=environment, timeout=50)
    assert result.returncode == 0


def test_a_process_that_nobody_has_waited_for_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(process.pid)
    assert is_there(name)
    assert not is_there(f"{process.pid} 1")
    process.kill()
    while is_there(name):
        time.sleep(0.01)
    assert Path(f"/proc/{process.pid}").exists()
    process.communicate()
    assert not is_there(name)
