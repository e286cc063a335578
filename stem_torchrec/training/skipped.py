"""Steps that were left out because a loss or a gradient was not finite."""

import io
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.step import StepOutput
from stem_torchrec.distributed.verdict import OnTheWay
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place
from stem_torchrec.training.metrics import TrainMetrics, step_sums
from stem_torchrec.training.position import Position

_log = logging.getLogger(__name__)


class _Unsettled(NamedTuple):
    """A step that the device has taken or left out, the host does not know yet.

    Attributes:
        step: its number, from 1.
        losses: (T,) of this rank.
        sums: ``step_sums`` of it.
        skipped: whether it was left out.
    """

    step: int
    batch: Batch
    losses: Tensor
    sums: Tensor
    skipped: OnTheWay


class SkippedSteps:
    """Counts steps that were left out, a step late, and those that were not into the metrics.

    The device has the next step to do when the host asks it how the last one went. Whoever needs
    the counts, the metrics or a checkpoint calls ``settle`` first.

    Args:
        position: where they are counted.
        metrics: which know none of them.
    """

    def __init__(
        self,
        config: Config,
        tasks: tuple[str, ...],
        ranks: Ranks,
        position: Position,
        metrics: TrainMetrics,
    ) -> None:
        self._limit = config.train.max_skipped_steps
        self._run_dir = config.run.dir
        self._tasks = tasks
        self._ranks = ranks
        self._position = position
        self._metrics = metrics
        self._in_a_row = 0
        self._unsettled: _Unsettled | None = None

    def add(self, done: StepOutput) -> None:
        """After each step, once the position counts it; settles the one before.

        Raises:
            UserError: as ``settle`` does.
        """
        dense = done.dense
        sums, skipped = step_sums(dense), OnTheWay(done.skipped)
        self.settle()
        self._unsettled = _Unsettled(self._position.step, done.batch, dense.losses, sums, skipped)

    def settle(self) -> None:
        """Count the last step, if it is not yet; the same on every rank. Waits for it to end.

        Raises:
            UserError: ``train.max_skipped_steps`` in a row; each rank has saved its last batch.
        """
        last, self._unsettled = self._unsettled, None
        if last is None:
            return
        if not last.skipped.is_set():
            self._in_a_row = 0
            self._metrics.add(last.sums, len(last.batch.labels))
            return
        self._position.skipped += 1
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            self._give_up(last)

    def _give_up(self, last: _Unsettled) -> None:
        try:
            save_bad_batch(self._run_dir, self._ranks.rank, self._tasks, last)
        except (OSError, UserError) as error:
            _log.warning("the last batch is not saved: %s", error)
        self._ranks.barrier()  # no rank ends the job while another still writes
        raise UserError(
            f"train.max_skipped_steps: {self._in_a_row} steps in a row, the last of them "
            f"{last.step}, had a loss or gradient that is not finite, and were left out; the last "
            f"batch and its losses are in {self._run_dir}/bad_batch_rank*.pt (lower learning "
            "rates, or clip with embedding.max_gradient and optim.clip_norm)"
        )


def save_bad_batch(run_dir: Place, rank: int, tasks: tuple[str, ...], bad: _Unsettled) -> None:
    """Write ``RUN/bad_batch_rankR.pt``: step, losses by task, and the batch as plain tensors."""
    content = {
        "step": bad.step,
        "losses": dict(zip(tasks, bad.losses.tolist(), strict=True)),
        "batch": _plain(bad.batch),
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
