"""One trial: a training in a process of its own, whose evaluations are reported as they come."""

import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stem_torchrec import checkpoint
from stem_torchrec.analysis.training_process import (
    Ranks,
    Start,
    Training,
    end_trainings,
    failure_of,
    start_training,
)
from stem_torchrec.analysis.tune.study import LAST_VALUE, Chosen
from stem_torchrec.config import Config, metric_direction
from stem_torchrec.config.reading import dump_config
from stem_torchrec.runs.records import METRICS, read_records
from stem_torchrec.storage.lock.folder_lock import holder_of
from stem_torchrec.storage.place import replace_text
from stem_torchrec.training.finished_run import unfinished

_POLL_S = 0.2


class OutOfTime(Exception):
    """The search's minutes are over."""


@dataclass(frozen=True)
class TrialRun(Training):
    """The ``train`` command of a trial; ``dir`` is beside its config and its log."""

    config: Config
    overrides: Sequence[str] = ()

    @property
    def file(self) -> Path:
        return self.dir.with_name(f"{self.dir.name}.yaml")


class Result(NamedTuple):
    """How a trial has ended: with a value, pruned, or with a failure.

    Attributes:
        evaluations: of the valid split, so far.
    """

    value: float | None
    failure: str | None
    evaluations: int


def run_trial(chosen: Chosen, run: TrialRun, nproc: int, end_s: float | None) -> Result:
    """Train until the end, or until the median of other trials is better.

    Args:
        end_s: when to end it, as ``time.monotonic`` counts; None for never.

    Raises:
        OutOfTime: the run has saved what it came to. Whatever else ends this function early, a
            signal too, ends the run as well.
    """
    _wait_until_left(run.dir)
    run.dir.parent.mkdir(parents=True, exist_ok=True)
    replace_text(run.file, dump_config(run.config, {}))
    start = _start(run.dir)
    if start == "overwrite":  # records of an earlier beginning would be taken for this one's
        shutil.rmtree(run.dir, ignore_errors=True)
    process = start_training(run, start, run.file, Ranks(nproc, 1))
    reports = _Reports(chosen, run)
    try:
        while process.poll() is None:
            if end_s is not None and time.monotonic() > end_s:
                raise OutOfTime
            if reports.read() and chosen.trial.should_prune():
                return Result(None, None, reports.count)
            time.sleep(_POLL_S)
    finally:
        end_trainings([process])
    return _result(run, process, reports)


def forget_checkpoints(run: TrialRun) -> None:
    """A trial is over: its weights are of no more use."""
    shutil.rmtree(run.dir / checkpoint.FOLDER, ignore_errors=True)


class _Reports:
    """What a run's records say of the valid split, told to the study once each.

    They are counted, not placed by their steps: a step of a larger batch is another one.
    """

    def __init__(self, chosen: Chosen, run: TrialRun) -> None:
        self._chosen, self._run = chosen, run
        self._size = -1
        self.values: list[float | None] = []

    @property
    def count(self) -> int:
        return len(self.values)

    def read(self) -> bool:
        """Whether there is a new figure."""
        file = self._run.dir / METRICS
        size = file.stat().st_size if file.is_file() else 0
        if size == self._size:
            return False
        self._size = size
        metric, before = self._run.config.metric, self.count
        found = [r for r in read_records(self._run.dir) if r["kind"] == "eval"]
        values = [checkpoint.metric_value(r, metric) for r in found if r.get("split") == "valid"]
        for number, value in enumerate(values[before:], start=before + 1):
            self.values.append(value)
            if value is not None:
                self._chosen.trial.report(value, number)
                self._chosen.trial.set_user_attr(LAST_VALUE, value)
        return any(value is not None for value in self.values[before:])


def _result(run: TrialRun, process: "subprocess.Popen[bytes]", reports: _Reports) -> Result:
    reports.read()
    failure = failure_of(run, process.returncode) or unfinished(run.dir)
    value = _value(run.config, reports.values)
    if failure is None and value is None:
        failure = f"{run.config.metric} of the valid split was never defined"
    return Result(None if failure else value, failure, reports.count)


def _value(config: Config, values: Sequence[float | None]) -> float | None:
    """That of the weights which the run would have tested: its best ones or its last."""
    if not (config.tests_best or config.waits_for_valid):
        return values[-1] if values else None
    known = [value for value in values if value is not None]
    sign = metric_direction(config.metric)
    return max(known, key=lambda value: sign * value, default=None)


def _start(run_dir: Path) -> Start:
    begun = (run_dir / "config.yaml").is_file()
    return (
        "resume" if begun and checkpoint.saved_steps(run_dir / checkpoint.FOLDER) else "overwrite"
    )


def _wait_until_left(run_dir: Path) -> None:
    """The run of a process that was killed saves, and ends, some seconds later."""
    while (holder := holder_of(run_dir)) is not None and holder.state() == "lives":
        time.sleep(_POLL_S)
