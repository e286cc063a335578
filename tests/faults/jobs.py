"""Jobs that are started, disturbed and compared with an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import observed
from tests.faults.events import events, phase_of
from tests.faults.observed import RANKS
from tests.support.forked import Forked
from tests.support.prepared import small_config

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ["--train.epochs", "4", "--train.log_every", "1", "--checkpoint.every", "4"]
OPTIONS += ["--eval.every", "6", "--distributed.timeout_s", "60"]


class Result(NamedTuple):
    """What a job has left.

    Attributes:
        code: exit code.
        final: the eval record of the test split, or None.
        losses: step -> loss by task, as the last life of the job recorded it.
        rows: step -> checksum of the rows of each rank, of the life whose step counts.
        kills: what each killed rank was at.
    """

    code: int
    final: dict[str, Any] | None
    losses: dict[int, Any]
    rows: dict[int, tuple[int, ...]]
    kills: list[str]
    log: str


class Job:
    """A 2-rank run in a process of its own.

    Unless ``forked``, interpreters are started for it and for its ranks, as for a user's.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        *,
        restarts: int = 0,
        options: Sequence[str] = (),
        fault: str = "none -1 0",
        forked: bool = True,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run_dir = folder, folder / "run"
        config = small_config(folder / "config.yaml", data, self.run_dir)
        self._out = (folder / "out").open("w")
        words = [str(word) for word in (config, folder, restarts, *OPTIONS, *options)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "FAULT": fault}
        self.process: subprocess.Popen[bytes] | Forked
        if forked:
            out = self._out.fileno()
            self.process = Forked(observed.main, words, stdout=out, stderr=out, env=environment)
            return
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.observed", *words],
            cwd=ROOT,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def num_events(self) -> int:
        """Of rank 0, so far."""
        return len(events(self.folder, 0))

    def wait_for(self, what: str, *, after: int, timeout_s: float = 240) -> int | None:
        """The place in rank 0's events after the next such one, looked for from the place
        ``after``; None if the job ended.
        """
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            for place, event in enumerate(events(self.folder, 0)[after:], after + 1):
                if event.what == what:
                    return place
            if time.monotonic() > end:
                raise TimeoutError(f"no {what!r} in {self.folder}")
            time.sleep(0.005)
        return None

    def kill(self, rank: int, timeout_s: float = 240) -> str | None:
        """SIGKILL a rank; what it was at, or None if its work was done or the job has ended.

        What is left to a rank that is done is torch's: its launcher waits forever for a worker
        that dies as it hands over its result.
        """
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            found = events(self.folder, rank)
            with suppress(ProcessLookupError, IndexError):  # its new life has not begun
                process = found[-1].process
                os.kill(process, signal.SIGSTOP)  # it does nothing more that its events do not say
                life = [event for event in events(self.folder, rank) if event.process == process]
                done = life[-1].what == "done"
                os.kill(process, signal.SIGCONT if done else signal.SIGKILL)
                return None if done else phase_of(life)
            if time.monotonic() > end:
                raise TimeoutError(f"no rank {rank} in {self.folder}")
            time.sleep(0.005)
        return None

    def result(self, kills: Sequence[str] = (), timeout_s: float = 400) -> Result:
        code = self.process.wait(timeout_s)
        self._out.close()
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        records = [json.loads(line) for line in lines]
        tests = [r for r in records if r["kind"] == "eval" and r["split"] == "test"]
        losses = {r["step"]: r["loss"] for r in records if r["kind"] == "train"}
        by_rank = [
            {event.step: event.rows for event in events(self.folder, rank) if event.what == "step"}
            for rank in range(RANKS)
        ]
        rows = {step: tuple(found.get(step, 0) for found in by_rank) for step in by_rank[0]}
        final = tests[-1] if tests else None
        return Result(code, final, losses, rows, list(kills), (self.folder / "out").read_text())

    def close(self) -> None:
        """End what is left of it."""
        found = [events(self.folder, rank) for rank in range(RANKS)]
        for process in [*(part[-1].process for part in found if part), self.process.pid]:
            if self.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.wait()
        self._out.close()


def differences(result: Result, expected: Result) -> list[str]:
    """What is wrong with a disturbed job; empty if nothing is."""
    found = []
    if result.code != 0:
        found.append(f"exit code {result.code}")
    if result.final != expected.final:
        found.append("final metrics differ")
    if result.rows != expected.rows:
        found.append("rows lost or repeated")
    if result.losses != expected.losses:
        found.append("losses differ")
    return found
