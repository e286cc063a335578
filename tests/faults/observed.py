"""A training job whose workers write down what they do, for tests that disturb them.

``python -m tests.faults.observed CONFIG LOG RESTARTS [--section.key value ...]`` is ``stem-torchrec
train --nproc 2 --max-restarts RESTARTS``, with ``--resume`` if the folder holds a run.

Each rank writes its events (``tests.faults.events``) to the folder ``LOG``. ``FAULT="hang 1 5"`` or
``"throw 1 5"`` lets rank 1 hang or fail after step 5, ``"slow 1 5"`` wait after each step from then
on.
"""

import os
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stem_torchrec.stopping.parent_watch import POLL_S
from tests.faults.events import Log

RANKS = 2
SLOW_S = 2 * POLL_S
"""A killed launcher is missed before a step has ended."""


def observed_worker(log: Path, config: Any, existing: Any) -> Any:
    """``train_worker``, watched."""
    from stem_torchrec.cli.workers import train_worker

    write = Log(log, int(os.environ["RANK"])).write
    write("start")
    _observe(write)
    outcome = train_worker(config, existing)
    write("done")
    return outcome


def _observe(write: Callable[..., None]) -> None:
    from stem_torchrec.checkpoint import Saver
    from stem_torchrec.distributed.dense_step import DenseStep
    from stem_torchrec.training import course, trainer
    from stem_torchrec.training.trainer import Trainer

    last = {"rows": 0}
    forward, advance = DenseStep.__call__, trainer.Position.advance
    save, write_out, evaluate = Trainer._save, Saver._write, trainer.evaluate

    def watched_forward(self: Any, pooled: Any, batch: Any) -> Any:
        last["rows"] = rows_of(batch)
        return forward(self, pooled, batch)

    def watched_advance(self: Any, *arguments: Any) -> int:
        samples = advance(self, *arguments)
        write("step", self.step, last["rows"])
        _fault(self.step)
        return samples

    def watched_save(*arguments: Any, **options: Any) -> None:
        write("save")
        save(*arguments, **options)
        write("training")

    def watched_write_out(self: Any, content: Any, *arguments: Any) -> Any:
        write("write", content.step)
        error = write_out(self, content, *arguments)
        write("written", content.step)
        return error

    def watched_evaluate(session: Any, split: str, step: int, *arguments: Any) -> Any:
        write("evaluation" if split == "valid" else "end", step)
        record = evaluate(session, split, step, *arguments)
        if split == "valid":
            write("training")
        return record

    DenseStep.__call__ = watched_forward  # type: ignore[method-assign]
    trainer.Position.advance = watched_advance  # type: ignore[method-assign]
    Trainer._save = watched_save  # type: ignore[method-assign]
    Saver._write = watched_write_out  # type: ignore[method-assign]
    trainer.evaluate = course.evaluate = watched_evaluate


def _fault(step: int) -> None:
    what, rank, when = os.environ.get("FAULT", "none -1 0").split()
    if rank != os.environ["RANK"] or step < int(when):
        return
    if what == "slow":
        time.sleep(SLOW_S)
    elif step == int(when) and what == "throw":
        raise ValueError("this rank broke")
    elif step == int(when):
        time.sleep(1000)


def rows_of(batch: Any) -> int:
    """A checksum of a batch's ids, dense values and labels."""
    found = 0
    for part in (batch.sparse.values(), batch.sparse.lengths(), batch.dense, batch.labels):
        found = zlib.crc32(part.contiguous().numpy().tobytes(), found)
    return found


def main(arguments: list[str]) -> int:
    from stem_torchrec.config.reading import load_config
    from stem_torchrec.errors import UserError, WorkerError
    from stem_torchrec.launch.launcher import run_workers

    config, log, restarts, *options = arguments
    loaded = load_config(Path(config), options)
    try:
        run_workers(
            RANKS,
            observed_worker,
            Path(log),
            loaded,
            "resume" if loaded.run.dir.exists() else "refuse",
            max_restarts=int(restarts),
        )
    except (UserError, WorkerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
