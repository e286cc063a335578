"""Many short trainings at a time: a queue over worker processes that goes on where it stopped.

``work_off`` writes each job's record as one line as soon as it has ended; ``learning_curve`` is a
training that leaves no run folder: every split's figures after every epoch.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from stem_torchrec.config import Config
from stem_torchrec.errors import UserError
from stem_torchrec.stopping.parent_watch import ends_its_children

if TYPE_CHECKING:
    from torch import Tensor

Record = dict[str, Any]
Work = TypeVar("Work")


class Job(NamedTuple, Generic[Work]):
    """One training of a queue.

    Attributes:
        key: its name among all, by which its line is found again.
        work: what the worker is handed; any value that pickles.
    """

    key: str
    work: Work


def work_off(
    jobs: Iterable[Job[Work]],
    do: Callable[[Work], Record],
    file: Path,
    *,
    processes: int = 1,
    limit_s: float | None = None,
    fork: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Record]:
    """Do the jobs that have no line in ``file`` yet, in their order; key -> record of all done.

    A line is ``{"key", "seconds", **record}``, or ``{"key", "seconds", "failure"}`` where ``do``
    raised: such a job is tried again by the next call. What a killed process wrote half of a line
    of is done again, too. Workers compute with one thread each.

    Args:
        do: a function of a module, which the workers import.
        processes: workers; 0 for this process.
        limit_s: nothing is begun after so many seconds.
        fork: workers begin with what this process has imported, which saves seconds; only where it
            has not computed yet.
    """
    done = lines_of(file)
    left = [job for job in jobs if "failure" in done.get(job.key, {"failure": None})]
    end = None if limit_s is None else monotonic() + limit_s
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        if file.stat().st_size and not file.read_text().endswith("\n"):
            lines.write("\n")
        for number, (key, record) in enumerate(_ended(left, do, processes, end, fork), 1):
            done[key] = record
            lines.write(json.dumps({"key": key, **record}) + "\n")
            lines.flush()
            outcome = record.get("failure") or f"{record['seconds']:.1f} s"
            say(f"{number} of {len(left)}: {key}: {outcome}")
    return {key: record for key, record in done.items() if "failure" not in record}


def as_command(main: Callable[[], None]) -> None:
    """Run ``main``; where a key or a value is not allowed, its message and exit code 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def lines_of(file: Path) -> dict[str, Record]:
    """Key -> the last whole line with it; of no file, nothing."""
    found: dict[str, Record] = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record.pop("key")] = record
    return found


def _ended(
    jobs: Sequence[Job[Work]],
    do: Callable[[Work], Record],
    processes: int,
    end: float | None,
    fork: bool,
) -> Iterable[tuple[str, Record]]:
    """Key and record of each job as it ends; no more are handed out than there are workers."""
    waiting = (job for job in jobs if end is None or monotonic() < end)
    if processes == 0:
        yield from ((job.key, _timed(do, job.work)) for job in waiting)
        return
    if not jobs:
        return
    workers = min(processes, len(jobs))
    context = get_context("fork" if fork else "spawn")
    executor = ProcessPoolExecutor(workers, context, _start_worker)
    with ends_its_children(), executor as pool:
        running: dict[Future[Record], str] = {}
        while True:
            for job in islice(waiting, workers - len(running)):
                running[pool.submit(_timed, do, job.work)] = job.key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _start_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    quiet()


def quiet() -> None:
    """Without what the libraries say at the start of every training."""
    warnings.simplefilter("ignore")
    for name in (None, "torchrec", "torch.fx"):  # None is the root
        logging.getLogger(name).setLevel(logging.ERROR)


def _timed(do: Callable[[Work], Record], work: Work) -> Record:
    start = monotonic()
    try:
        record = do(work)
    except Exception as error:
        record = {"failure": f"{type(error).__name__}: {error}"}
    return {"seconds": monotonic() - start, **record}


def learning_curve(config: Config, splits: Sequence[str] = ("valid", "test")) -> list[Record]:
    """Train as ``stem-torchrec train`` does, in this process and on one rank, and keep nothing.

    Returns:
        The eval record of each split after each epoch and after the last step. With a balancing
        rule it has ``balance``: figure -> by task, the means over the epoch's steps.
    """
    from stem_torchrec.distributed.optimizers import learning_rate_factor
    from stem_torchrec.distributed.ranks import ranks_of_job
    from stem_torchrec.training.evaluating import evaluate
    from stem_torchrec.training.position import Position
    from stem_torchrec.training.session import build, open_split

    records: list[Record] = []
    balance: list[dict[str, Tensor]] = []
    with ranks_of_job(config.distributed) as ranks:
        session = build(config, ranks)
        position = Position(open_split(session, "train", for_training=True))
        total_steps = position.total_steps(config)
        batches = position.batches(total_steps)
        while position.step < total_steps:
            session.recommender.train()
            session.optimizers.set_applied_steps(position.step)
            if session.fork is not None:
                session.fork.begin(position.step)
            factor = learning_rate_factor(config.optim, position.step, total_steps)
            session.optimizers.set_learning_rates(factor)
            session.step(batches)
            position.advance()
            balance += [session.fork.metrics()] if session.fork is not None else []
            if position.read.is_start or position.step == total_steps:
                means = {"balance": step_means(balance)} if balance else {}
                balance.clear()
                for split in splits:
                    found = evaluate(session, split, position.step, position.epoch)
                    records.append(found | means)
    return records


def step_means(steps: "Sequence[dict[str, Tensor]]") -> dict[str, list[float]]:
    """Figure -> its values by task, without steps that do not define them."""
    import torch

    return {
        name: torch.stack([step[name].reshape(-1) for step in steps]).nanmean(dim=0).tolist()
        for name in steps[0]
    }


def at_best(curve: Sequence[Record], metric: str = "auc_mean") -> dict[str, Record]:
    """Split -> its record of the epoch that has the highest figure on the valid split."""
    valid = [record for record in curve if record["split"] == "valid"]
    best = max(valid, key=lambda record: record[metric])["step"]
    return {record["split"]: record for record in curve if record["step"] == best}
