"""What ends a process from outside its main thread, each case in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, resource, signal, sys, time
import torch
from stem_torchrec.stopping.interruption import Interruption
from stem_torchrec.distributed.ranks import Ranks

signal.signal(signal.SIGINT, signal.SIG_DFL)  # however the tests were started
signal.signal(signal.SIGHUP, signal.SIG_DFL)
ranks = Ranks(0, 1, 0, 1, torch.device("cpu"), None, None, None)

def leave_in_time():
    with Interruption(ranks, grace_s=60, limit_s=60) as interruption:
        assert not interruption.agreed()
        os.kill(os.getpid(), signal.SIGINT)
        while not interruption.agreed():
            time.sleep(0.01)

def among_many_descriptors():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, most), most))
    held = [os.dup(0) for _ in range(1100)]
    leave_in_time()

def hangup():
    with Interruption(ranks, grace_s=60, limit_s=60) as interruption:
        os.kill(os.getpid(), signal.SIGHUP)
        while not interruption.agreed():
            time.sleep(0.01)

def left_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interruption(ranks, grace_s=60, limit_s=60) as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(1)
        assert not interruption.agreed()

def outlast_the_grace():
    with Interruption(ranks, grace_s=1, limit_s=60):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

def second_signal():
    with Interruption(ranks, grace_s=60, limit_s=60):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2.5)
        time.sleep(60)

def the_same_signal_twice():
    with Interruption(ranks, grace_s=60, limit_s=60):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

def hang():
    with Interruption(ranks, grace_s=60, limit_s=1) as interruption:
        interruption.beat()
        time.sleep(60)

def rest():
    with Interruption(ranks, grace_s=60, limit_s=1) as interruption:
        interruption.beat()
        interruption.rest()
        time.sleep(2.5)

def afterwards():
    with Interruption(ranks, grace_s=60, limit_s=60):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

def end(*cases):
    children = {}
    for case in cases:
        children[case] = os.fork()
        if children[case] == 0:
            case()
            os._exit(0)
    for case, child in children.items():
        print(case.__name__, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

end(hang)  # alone: its stacks are written in pieces
end(leave_in_time, among_many_descriptors, hangup, left_ignored, outlast_the_grace, second_signal,
    the_same_signal_twice, rest, afterwards)
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], str]:
    """Exit code by case, and everything on stderr."""
    file = tmp_path_factory.mktemp("interruption") / "cases.py"
    file.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", file],
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "/usr/bin:/bin"},
    )
    cases = (line.split() for line in result.stdout.splitlines())
    return {name: int(code) for name, code in cases}, result.stderr


@pytest.mark.parametrize(
    ("case", "code"),
    [
        ("leave_in_time", 0),
        ("among_many_descriptors", 0),
        ("hangup", 0),
        ("left_ignored", 0),
        ("outlast_the_grace", 1),
        ("second_signal", 128 + signal.SIGTERM),
        ("the_same_signal_twice", 0),
        ("hang", 1),
        ("rest", 0),
        ("afterwards", -signal.SIGTERM),
    ],
)
def test_exit_code(ended: tuple[dict[str, int], str], case: str, code: int) -> None:
    assert ended[0][case] == code


def test_messages(ended: tuple[dict[str, int], str]) -> None:
    assert "error: rank 0: no end within run.grace_s = 1 s of SIGTERM" in ended[1]
    assert "ended at once by a second SIGTERM" in ended[1]
    assert "within distributed.timeout_s = 1 s" in ended[1]
    assert "in hang" in ended[1]
