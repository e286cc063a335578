"""A signal before the first step: exit code 0, and what was there is there."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

from stem_torchrec.checkpoint import saved_steps
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.cli import main
from stem_torchrec.launch.launcher import run_workers
from stem_torchrec.stopping.signals import NOTE
from tests.support.forked import Forked
from tests.support.prepared import small_config, small_data

ROOT = Path(__file__).resolve().parents[2]


def handles(process: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for a signal."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (mask,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return bool(mask >> (number - 1) & 1)


def stopped_after(
    wait_s: float, number: signal.Signals, log: Path, words: list[str], *, forked: bool
) -> int:
    """The exit code of a training command that gets a signal so long after it would take one."""
    process: Forked | subprocess.Popen[bytes]
    if forked:
        process = Forked.logged(log, main, words)
    else:
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stem_torchrec", *words],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=output,
            )
    while not handles(process.pid, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(wait_s)
    process.send_signal(number)
    return process.wait(120)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has been stopped after 5 steps."""
    folder = tmp_path_factory.mktemp("early")
    file = small_config(folder / "config.yaml", small_data(folder / "data"), folder / "run")
    assert main(["train", "--config", str(file), "--train.max_steps", "5"]) == 0
    return file


@pytest.mark.parametrize(
    ("nproc", "number", "wait_s", "forked"),
    [
        (1, signal.SIGTERM, 0.0, True),
        (1, signal.SIGINT, 0.5, True),
        (2, signal.SIGINT, 0.0, True),
        (2, signal.SIGTERM, 2.0, True),
        (2, signal.SIGHUP, 1.0, False),
    ],
)
@pytest.mark.usefixtures("ordinary_signals")
def test_a_resume_may_be_stopped_as_it_starts(
    config: Path, tmp_path: Path, nproc: int, number: signal.Signals, wait_s: float, *, forked: bool
) -> None:
    """Imports are part of the start where it is not forked."""
    saved = saved_steps(config.parent / "run" / "checkpoints")
    words = ["train", "--config", str(config), "--resume", "--train.epochs", "1000"]
    log = tmp_path / "log"
    code = stopped_after(wait_s, number, log, [*words, "--nproc", str(nproc)], forked=forked)
    shown = log.read_text()
    assert code == 0, shown
    assert "Traceback" not in shown
    assert "stopped by a signal" in shown
    last = saved_steps(config.parent / "run" / "checkpoints")[-1]
    assert last >= saved[-1]
    assert main([*words, "--train.max_steps", str(last + 1)]) == 0
    assert saved_steps(config.parent / "run" / "checkpoints")[-1] == last + 1


def work() -> str:
    time.sleep(100)
    return "not stopped"


def workers_of_a_signalled_job() -> None:
    def signalled(self: Any, group: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return meet(self, group)

    meet, SimpleElasticAgent._rendezvous = SimpleElasticAgent._rendezvous, signalled
    print(run_workers(2, work))


def test_workers_that_start_after_the_signal_get_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert Forked.logged(log, workers_of_a_signalled_job).wait(90) == 0
    assert log.read_text().splitlines()[-1] == "None"


def main_signalled_as_it_loads(words: list[str]) -> int | None:
    def signalled(self: Any, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return read(self, *arguments)

    read, Reader.read_data = Reader.read_data, signalled  # type: ignore[method-assign]
    return main(words)


def test_no_library_takes_the_signal_for_an_error_of_its_own(config: Path, tmp_path: Path) -> None:
    """DCP catches whatever comes out of a load, and gathers it as a rank's failure."""
    words = ["train", "--config", str(config), "--resume", "--train.epochs", "1000"]
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        streams = {"stdout": out.fileno(), "stderr": err.fileno()}
        process = Forked(main_signalled_as_it_loads, words, **streams)
    code, shown = process.wait(120), (tmp_path / "err").read_text()
    assert (code, "Traceback" in shown) == (0, False), shown
    assert shown.splitlines()[-1] == NOTE
