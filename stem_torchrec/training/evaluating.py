"""How rows are predicted and measured on all ranks."""

from collections.abc import Callable, Iterator

from stem_torchrec.data.batch import Batch
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.errors import SplitRefused, UserError
from stem_torchrec.nn.losses import labelled
from stem_torchrec.runs.records import Record, defined
from stem_torchrec.stopping.interruption import Interruption
from stem_torchrec.training.evaluation import Joined, Predictions, evaluation
from stem_torchrec.training.session import Session, open_split

Counted = Callable[[int, int], None]
"""Is told how many rows are done, and of how many."""


def evaluate(
    session: Session,
    split: str,
    step: int,
    epoch: int | None = None,
    interruption: Interruption | None = None,
    counted: Counted | None = None,
) -> Record:
    """Exact metrics of a split, every row once on any number of ranks. Collective.

    Args:
        step, epoch: whose weights the session has; None where that is not known.
        interruption: watches over it; None for nothing.
        counted: as of ``predict``.

    Returns:
        The eval record on every rank.

    Raises:
        SplitRefused: its files are not there or not as they should be, on every rank.
        Stopped: the ranks have agreed to stop.
    """
    try:
        reader = open_split(session, split)
    except UserError as error:  # the same on every rank
        raise SplitRefused(f"{split} is not evaluated after step {step}: {error}") from error
    record = {"kind": "eval", "split": split, "step": step, "epoch": epoch}
    return record | figures_on(session, reader, interruption, counted)


def figures_on(
    session: Session,
    reader: ParquetReader,
    interruption: Interruption | None = None,
    counted: Counted | None = None,
) -> Record:
    """Exact metrics of a reader's rows, and how many they are. Collective.

    Raises:
        Stopped: the ranks have agreed to stop.
    """
    tasks, samples = session.schema.task_names, {"samples": reader.num_rows}
    joined = predict(session, reader, interruption, counted)
    return session.ranks.on_first(lambda: samples | defined(evaluation(tasks, joined)))


def predict(
    session: Session,
    reader: ParquetReader,
    interruption: Interruption | None = None,
    counted: Counted | None = None,
) -> Joined | None:
    """Predictions on the reader's rows on rank 0, None elsewhere. Collective.

    Args:
        counted: hears of the rows of all ranks, about, as this rank reads its own.

    Raises:
        Stopped: the ranks have agreed to stop.
    """
    batches: Iterator[Batch] = reader.epoch(0)
    if counted is not None:
        batches = _counting(batches, reader.num_rows, session.ranks.world_size, counted)
    return predict_batches(session, batches, interruption)


def _counting(
    batches: Iterator[Batch], total: int, world_size: int, counted: Counted
) -> Iterator[Batch]:
    done = 0
    for batch in batches:
        yield batch
        done = min(total, done + batch.num_samples * world_size)
        counted(done, total)


def predict_batches(
    session: Session, batches: Iterator[Batch], interruption: Interruption | None = None
) -> Joined | None:
    """As ``predict``, on these batches of a split."""
    tasks = session.schema.task_names
    predictions = Predictions(len(tasks), has_groups=session.schema.group is not None)
    for batch, logits in session.step.predict(batches):
        if batch.num_samples > 0:
            predictions.add(logits, labelled(batch.labels, batch.weights), batch.groups)
        if interruption is not None:
            interruption.check()
    if interruption is not None:
        interruption.rest()
    return predictions.joined(session.ranks.gather_rows)
