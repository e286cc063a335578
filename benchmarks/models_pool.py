"""Trainings in processes side by side, one thread each; every finished one is a line at once."""

import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from models_search import Row, Training

Next = Callable[[dict[str, Row]], Iterator[Training]]
"""What is wanted, given what is done."""


def read_rows(file: Path) -> dict[str, Row]:
    """The finished trainings by key; a line that was cut off counts for nothing."""
    rows = {}
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["key"]] = row
    return rows


def run_all(following: Next, file: Path, data: Path, workers: int, seconds: float) -> None:
    """Train what is wanted until nothing is, or the time is over; what still runs then is lost.

    Args:
        file: JSON lines, read first and appended to.
        data: the folder of the prepared sets.
        workers: processes.
        seconds: of time; may be infinite.
    """
    rows, end = read_rows(file), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch, _pool(workers, data, Path(scratch)) as pool:
        while (left := end - time.monotonic()) > 0:
            _hand_out(pool, following, rows)
            busy = [worker for worker in pool if worker.training is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], timeout=min(left, 60))
            for worker in busy:
                if worker.pipe in ready:
                    row = worker.result()
                    rows[row["key"]] = row
                    with file.open("a") as lines:
                        lines.write(json.dumps(row) + "\n")
                    print(_told(row), flush=True)


@contextmanager
def _pool(workers: int, data: Path, scratch: Path) -> Iterator[list["_Worker"]]:
    """Processes that wait for work; killed at the end, for a run answers a signal with a save."""
    pool = [_Worker(data, scratch) for _ in range(workers)]
    try:
        yield pool
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def _hand_out(pool: list["_Worker"], following: Next, rows: dict[str, Row]) -> None:
    running = {worker.training.key for worker in pool if worker.training is not None}
    free = [worker for worker in pool if worker.training is None]
    for training in following(rows):
        if not free:
            return
        if training.key not in running:
            running.add(training.key)
            free.pop().give(training)


class _Worker:
    """A process that trains what it is given, one after the other."""

    def __init__(self, data: Path, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, data, scratch), daemon=True)
        self.process.start()
        theirs.close()
        self.training: Training | None = None

    def give(self, training: Training) -> None:
        self.training = training
        self.pipe.send(training)

    def result(self) -> Row:
        assert self.training is not None
        try:
            row: Row = self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.training} has ended") from None
        self.training = None
        return row


def _serve(pipe: Connection, data: Path, scratch: Path) -> None:
    import torch

    torch.set_num_threads(1)
    logging.getLogger("stem_torchrec").setLevel(logging.ERROR)
    while True:
        pipe.send(train(pipe.recv(), data, scratch))


def train(training: Training, data: Path, scratch: Path) -> Row:
    """The line of a training: its settings, and its figures on valid and test, or why it failed."""
    from stem_torchrec import train as run_training

    start, cpu = time.perf_counter(), time.process_time()
    row: Row = {**training._asdict(), "key": training.key, "settings": dict(training.settings)}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        keys = row["settings"] | {
            "run.dir": f"{folder}/run",
            "run.seed": training.seed,
            "data.path": str(data / training.data),
        }
        try:
            run = run_training(_sections(keys), nproc=1)
            records = [json.loads(line) for line in (run.config.run.dir / "metrics.jsonl").open()]
            row |= _figures([record for record in records if record["kind"] == "eval"])
        except Exception as error:  # told in the line: one training is not the comparison
            row["error"] = f"{type(error).__name__}: {error}"
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return row | {name: round(value, 2) for name, value in seconds.items()}


def _sections(keys: dict[str, Any]) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in keys.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    return sections


def _figures(evaluations: list[Row]) -> Row:
    """Of the tested weights on test and on valid, and of each epoch on valid."""
    *valid, test = evaluations
    assert test["split"] == "test"
    names = ("auc_mean", "auc", "ne", "logloss", "calibration")
    epochs = [{name: each[name] for name in ("epoch", *names)} for each in valid]
    tested = next(each for each in valid if each["step"] == test["step"])
    return {
        "best_epoch": test["epoch"],
        "test": {name: test[name] for name in names},
        "valid_auc_mean": tested["auc_mean"],
        "epochs": epochs,
    }


def _told(row: Row) -> str:
    what = f"{row['data']} {row['model']} {row['role']} seed {row['seed']} {row['seconds']:.0f} s"
    if "error" in row:
        return f"{what}: {row['error']}"
    rates = " ".join(f"{k}={v}" for k, v in row["settings"].items() if k.endswith(".lr"))
    figures = f"valid {row['valid_auc_mean']:.4f} test {row['test']['auc_mean']:.4f}"
    return f"{what} {rates} epoch {row['best_epoch']} of {len(row['epochs'])}: {figures}"
