"""Running the runs of a comparison: each a command in a process of its own."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from stem_torchrec import checkpoint
from stem_torchrec.analysis.compare.plan import PlannedRun
from stem_torchrec.analysis.training_process import (
    Ranks,
    Start,
    end_trainings,
    failure_of,
    signals_as_exit,
    start_training,
)
from stem_torchrec.config.careful_yaml import careful_load
from stem_torchrec.config.reading import dump_config
from stem_torchrec.errors import UserError
from stem_torchrec.runs.records import last_test, read_records
from stem_torchrec.runs.schema import selected_schema
from stem_torchrec.stopping.parent_watch import ends_its_children
from stem_torchrec.training.finished_run import unfinished, unfinished_replay
from stem_torchrec.training.settling import settled

Action = Literal["keep"] | Start
_POLL_S = 0.1


@dataclass(frozen=True)
class Finished:
    """A run that has ended now or before.

    Attributes:
        failure: why it has no results, or None.
        seconds: how long it took; None if it was there already.
    """

    run: PlannedRun
    failure: str | None = None
    seconds: float | None = None


def action_for(run: PlannedRun, nproc: int, *, overwrite: bool) -> Action:
    """What is left to do for a run.

    Raises:
        UserError: its folder holds a run of another config or number of ranks.
    """
    if overwrite or not (run.dir / "config.yaml").is_file():
        return "overwrite"
    difference = difference_of(run, nproc)
    if difference:
        raise UserError(
            f"{run.dir}: the run there has {difference}; "
            "choose another --out, or pass --overwrite to run everything anew"
        )
    if _without_results(run) is None:
        return "keep"
    return "resume" if checkpoint.saved_steps(run.dir / checkpoint.FOLDER) else "overwrite"


def difference_of(run: PlannedRun, nproc: int) -> str | None:
    """The first key in which the run in the folder differs, with both values.

    Versions and the place of the folder do not count.
    """
    try:
        content = careful_load((run.dir / "config.yaml").read_bytes().decode())
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    found = dict(_flat(content if isinstance(content, dict) else {}))
    config = run.config
    if config.train.is_open:
        config = settled(config, selected_schema(config))
    wanted = dict(_flat(careful_load(dump_config(config, {}))))
    start = _start_file(run)
    if start.is_file():
        found["--nproc"] = json.loads(start.read_text())["nproc"]
        wanted["--nproc"] = nproc
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if key != "run.dir" and found.get(key) != wanted.get(key):
            return f"{key} {found.get(key)!r}, wanted {wanted.get(key)!r}"
    return None


def _flat(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, keys in content.items():
        if section != "versions" and isinstance(keys, Mapping):
            yield from ((f"{section}.{key}", value) for key, value in keys.items())


def run_all(
    runs: Sequence[tuple[PlannedRun, Action]],
    config: Path,
    ranks: Ranks,
    started: Callable[[PlannedRun], None],
    ended: Callable[[Finished], None],
) -> list[Finished]:
    """Train what is not there yet, ``ranks.parallel`` at a time; the others go on when one fails.

    Whatever ends this function early, a signal too, ends the processes it started.
    """
    waiting, finished = list(runs), []
    processes: dict[subprocess.Popen[bytes], tuple[PlannedRun, float]] = {}

    def end(outcome: Finished) -> None:
        finished.append(outcome)
        ended(outcome)

    with signals_as_exit(), ends_its_children():
        try:
            while waiting or processes:
                while waiting and len(processes) < ranks.parallel:
                    run, action = waiting.pop(0)
                    if action == "keep":
                        end(Finished(run))
                        continue
                    started(run)
                    processes[_start(run, action, config, ranks)] = (run, time.monotonic())
                for process in [p for p in processes if p.poll() is not None]:
                    run, since = processes.pop(process)
                    failure = _failure(run, process.returncode, ranks.nproc)
                    end(Finished(run, failure, time.monotonic() - since))
                if processes:
                    time.sleep(_POLL_S)
        finally:
            end_trainings(list(processes))
    return finished


def runs_at_a_time(runs: Sequence[PlannedRun]) -> int:
    """The largest ``--parallel`` that any of these runs was started with."""
    starts = [json.loads(_start_file(r).read_text()) for r in runs if _start_file(r).is_file()]
    return max((start["parallel"] for start in starts), default=1)


def _start(
    run: PlannedRun, action: Action, config: Path, ranks: Ranks
) -> "subprocess.Popen[bytes]":
    assert action != "keep"
    command = ["train"] if run.days is None else ["replay", "--days", run.days]
    run.dir.parent.mkdir(parents=True, exist_ok=True)
    _start_file(run).write_text(json.dumps(ranks._asdict()) + "\n")
    return start_training(run, action, config, ranks, command)


def _start_file(run: PlannedRun) -> Path:
    """Beside the run's folder: what a config does not tell about how it was started."""
    return run.dir.with_name(f"{run.dir.name}.json")


def _failure(run: PlannedRun, code: int, nproc: int) -> str | None:
    if code != 0:
        return failure_of(run, code)
    # The config file may have changed after the plan was made.
    difference = difference_of(run, nproc)
    if difference:
        return f"it ran with {difference}"
    return _without_results(run)


def _without_results(run: PlannedRun) -> str | None:
    """Why the run's folder has not what is compared; None if it has."""
    if run.days is not None:
        return unfinished_replay(run.dir)
    if last_test(read_records(run.dir)) is None:
        return "it wrote no test record"
    return unfinished(run.dir)
