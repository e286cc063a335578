"""A signal before the first step: exit code 0, and what was there is there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stem_torchrec.checkpoint import saved_steps
from stem_torchrec.cli import main
from stem_torchrec.stopping.signals import NOTE
from tests.support.prepared import small_config, small_data

ROOT = Path(__file__).resolve().parents[2]


def handles(process: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for a signal."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def stopped_after(
    wait_s: float, number: signal.Signals, *words: object
) -> subprocess.CompletedProcess[str]:
    """A training command that gets a signal so long after it would take one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "stem_torchrec", "train", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not handles(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(wait_s)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has been stopped after 5 steps."""
    folder = tmp_path_factory.mktemp("early")
    file = small_config(folder / "config.yaml", small_data(folder / "data"), folder / "run")
    assert main(["train", "--config", str(file), "--train.max_steps", "5"]) == 0
    return file


@pytest.mark.parametrize(
    ("nproc", "number", "wait_s"),
    [
        (1, signal.SIGTERM, 0.0),
        (1, signal.SIGINT, 3.0),
        (2, signal.SIGINT, 0.0),
        (2, signal.SIGTERM, 5.0),
        (2, signal.SIGHUP, 1.0),
    ],
)
@pytest.mark.usefixtures("ordinary_signals")
def test_a_resume_may_be_stopped_as_it_starts(
    config: Path, nproc: int, number: signal.Signals, wait_s: float
) -> None:
    saved = saved_steps(config.parent / "run" / "checkpoints")
    words = ["--config", config, "--resume", "--nproc", nproc, "--train.epochs", 1000]
    result = stopped_after(wait_s, number, *words)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "stopped by a signal" in result.stderr
    last = saved_steps(config.parent / "run" / "checkpoints")[-1]
    assert last >= saved[-1]
    goes_on = ["--resume", "--train.epochs", "1000", "--train.max_steps", str(last + 1)]
    assert main(["train", "--config", str(config), *goes_on]) == 0
    assert saved_steps(config.parent / "run" / "checkpoints")[-1] == last + 1


WORKERS = """
import os, signal, sys, time
from torch.distributed.elastic.agent.server import api
from stem_torchrec.launch.launcher import run_workers

def work():
    time.sleep(100)
    return "not stopped"

def signalled(self, group):
    os.kill(os.getpid(), signal.SIGTERM)
    return meet(self, group)

if __name__ == "__main__":
    meet, api.SimpleElasticAgent._rendezvous = api.SimpleElasticAgent._rendezvous, signalled
    print(run_workers(2, work))
"""


def test_workers_that_start_after_the_signal_get_it(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", tmp_path / "workers.py"],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.stdout.splitlines()[-1] == "None"


SIGNALLED_AS_IT_LOADS = """
import os, signal, sys
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.cli import main
from stem_torchrec.stopping.signals import NOTE

def signalled(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return read(self, *arguments)

read, Reader.read_data = Reader.read_data, signalled
sys.exit(main(sys.argv[1:]))
"""


def test_no_library_takes_the_signal_for_an_error_of_its_own(config: Path, tmp_path: Path) -> None:
    """DCP catches whatever comes out of a load, and gathers it as a rank's failure."""
    (tmp_path / "signalled.py").write_text(SIGNALLED_AS_IT_LOADS)
    words = ["train", "--config", config, "--resume", "--train.epochs", 1000]
    result = subprocess.run(
        [sys.executable, tmp_path / "signalled.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)
    assert result.stderr.splitlines()[-1] == NOTE
