"""Jobs that are started, disturbed and compared with an undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.observed import RANKS, Event, events
from tests.prepared import small_config

ROOT = Path(__file__).resolve().parents[2]
PHASES = {"start": 0.15, "training": 0.4, "save": 0.2, "evaluation": 0.15, "end": 0.1}
"""When to kill, and how often; of the run's time saves and evaluations are a small part."""
DELAY_S = {"start": 4.0, "training": 0.8, "save": 0.15, "evaluation": 0.15, "end": 0.2}
"""The kill comes within this time from the begin of the phase."""
OPTIONS = ["--train.epochs", "4", "--train.log_every", "1", "--checkpoint.every", "4"]
OPTIONS += ["--eval.every", "6", "--distributed.timeout_s", "60"]


class Result(NamedTuple):
    """What a job has left.

    Attributes:
        code: exit code.
        final: the eval record of the test split, or None.
        losses: step -> loss by task, as the last life of the job recorded it.
        rows: step -> checksum of the rows of each rank, of the life whose step counts.
        kills: phase of each kill.
    """

    code: int
    final: dict[str, Any] | None
    losses: dict[int, Any]
    rows: dict[int, tuple[int, ...]]
    kills: list[str]
    log: str


class Job:
    """A 2-rank run in a process of its own."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        *,
        restarts: int = 0,
        options: Sequence[str] = (),
        fault: str = "none -1 0",
        forked: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.run_dir = folder, folder / "run"
        config = small_config(folder / "config.yaml", data, self.run_dir)
        self._out = (folder / "out").open("w")
        words = [sys.executable, "-m", "tests.faults.observed", config, folder, restarts]
        words += [*OPTIONS, *options]
        self.process = subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "FAULT": fault,
                "FORKED": str(int(forked)),
            },
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_for(self, what: str, *, after: int, timeout_s: float = 240) -> Event | None:
        """Rank 0's next such event after its first ``after`` events; None if the job ended."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            for event in events(self.folder, 0)[after:]:
                if event.what == what:
                    return event
            if time.monotonic() > end:
                raise TimeoutError(f"no {what!r} in {self.folder}")
            time.sleep(0.005)
        return None

    def workers(self) -> list[int]:
        """The processes of the newest life, by rank."""
        return [found[-1].process for rank in range(RANKS) if (found := events(self.folder, rank))]

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
        for process in [*self.workers(), self.process.pid]:
            if self.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        self.process.wait()
        self._out.close()


def kill_often(job: Job, num_kills: int, chance: random.Random) -> list[str]:
    """SIGKILL a random rank at random moments, at most so often; the phases that were hit."""
    kills: list[str] = []
    seen = 0
    while len(kills) < num_kills:
        phase = chance.choices(list(PHASES), list(PHASES.values()))[0]
        # A life resumes before it takes a step; only then is there something else to hit.
        if phase != "start" and job.wait_for("step", after=seen) is None:
            break
        event = job.wait_for(phase if phase != "training" else "step", after=seen)
        if event is None:
            break
        time.sleep(chance.uniform(0, DELAY_S[phase]))
        if any(event.what == "done" for event in events(job.folder, 0)[seen:]):
            break  # what is left is torch's: a worker that dies as it hands over its result
        workers = job.workers()
        seen = len(events(job.folder, 0))
        if job.process.poll() is not None or len(workers) < RANKS:
            continue
        with suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills.append(phase)
            job.wait_for("start", after=seen)
    return kills


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
