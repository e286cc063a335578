"""Steps that were left out because a loss or a gradient was not finite."""

import io
import logging
from typing import Any

import torch

from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.step import StepOutput
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

_log = logging.getLogger(__name__)


class SkippedSteps:
    """Ends a run after ``train.max_skipped_steps`` in a row."""

    def __init__(self, config: Config, tasks: tuple[str, ...], ranks: Ranks) -> None:
        self._limit = config.train.max_skipped_steps
        self._run_dir = config.run.dir
        self._tasks = tasks
        self._ranks = ranks
        self._in_a_row = 0

    def count(self, done: StepOutput, step: int) -> None:
        """After each step, the same on every rank.

        Raises:
            UserError: too many in a row; each rank has saved its last batch.
        """
        if not done.skipped:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row < self._limit:
            return
        try:
            save_bad_batch(self._run_dir, self._ranks.rank, self._tasks, done, step)
        except (OSError, UserError) as error:
            _log.warning("the last batch is not saved: %s", error)
        self._ranks.barrier()  # no rank ends the job while another still writes
        raise UserError(
            f"train.max_skipped_steps: {self._in_a_row} steps in a row, the last of them {step}, "
            "had a loss or gradient that is not finite, and were left out; the last batch and its "
            f"losses are in {self._run_dir}/bad_batch_rank*.pt (lower learning rates, or clip "
            "with embedding.max_gradient and optim.clip_norm)"
        )


def save_bad_batch(
    run_dir: Place, rank: int, tasks: tuple[str, ...], done: StepOutput, step: int
) -> None:
    """Write ``RUN/bad_batch_rankR.pt``: step, losses by task, and the batch as plain tensors."""
    content = {
        "step": step,
        "losses": dict(zip(tasks, done.dense.losses.tolist(), strict=True)),
        "batch": _plain(done.batch),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (run_dir / f"bad_batch_rank{rank}.pt").write_bytes(buffer.getvalue())


def _plain(batch: Batch) -> dict[str, Any]:
    """On the host; ``ids`` holds (values, lengths) per feature."""
    host = batch.to(torch.device("cpu"))
    ids = {name: (part.values(), part.lengths()) for name, part in host.sparse.to_dict().items()}
    return {
        "ids": ids,
        "dense": host.dense,
        "labels": host.labels,
        "weights": host.weights,
        "num_samples": host.num_samples,
    }
