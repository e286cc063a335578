"""A run's predictions for files of rows, on any number of ranks.

B rows of a rank's batch, W ranks, T tasks. All ranks read the same rows, W * B at a time, and each
predicts its part of them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.batch import Batch
from stem_torchrec.data.collate import Collator
from stem_torchrec.data.decode import decode, uses_in_order
from stem_torchrec.data.prefetch import prefetched
from stem_torchrec.data.schema import Schema
from stem_torchrec.serving.inputs import InputFiles, Rows
from stem_torchrec.serving.prediction_files import PredictionFiles, open_out
from stem_torchrec.training.session import Session

Step = list[tuple[int, Rows]]
"""Rows of one step of all ranks: parts of files, in order."""

Progress = Callable[[int, int | None], None]
"""Is told the rows that are done and, where it is known, how many there are."""


def predict_files(
    session: Session, files: InputFiles, out: Path, request: dict, progress: Progress
) -> int:
    """Write the probability of every task for every row. Collective.

    Files that ``out`` holds of an interrupted run of the same ``request`` are left as they are. On
    one rank the probabilities are those that evaluating the same files sees, to the last bit: rows
    are cut into the same batches.

    Returns:
        Rows that were predicted.

    Raises:
        UserError: ``out`` is taken, or a file is damaged or holds a value that is not allowed.
    """
    ranks, config = session.ranks, session.config
    first = ranks.on_first(lambda: open_out(out, request, files.names))
    batch_size = config.eval.batch_size or config.train.batch_rows
    steps = _steps(files, first, batch_size * ranks.world_size)
    waiting: deque[Step] = deque()

    def batches() -> Iterator[Batch]:
        source = _batches(steps, files.names, session.schema, ranks.rank, batch_size)
        for step, batch in prefetched(source, config.data.prefetch_batches):
            waiting.append(step)
            yield batch

    writer = PredictionFiles(out, files.names, first)
    total = None if files.num_rows is None else sum(files.num_rows[first:])
    done = 0
    for batch, logits in session.step.predict(batches()):
        joined = ranks.gather_rows(logits[: batch.num_samples].float().cpu())
        step = waiting.popleft()
        if joined is not None:
            probabilities = probabilities_of(joined.double().numpy())
            done += _write(writer, step, probabilities, session.schema.task_names, first)
            progress(done, total)
    if ranks.is_first:
        writer.close()
    return ranks.on_first(lambda: done)


def probabilities_of(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sigmoid of logits, exact where they are far from 0."""
    return np.exp(-np.logaddexp(0.0, -logits))


def _steps(files: InputFiles, first: int, num_rows: int) -> Generator[Step, None, None]:
    """The rows from file ``first`` on, ``num_rows`` at a time.

    Where rows are counted, steps begin where those of all files would: rows before the first file's
    then come again.
    """
    skipped, start = 0, first
    if files.num_rows is not None:
        before = sum(files.num_rows[:first])
        skipped, start = before - before % num_rows, 0
        while start < first and skipped >= files.num_rows[start]:
            skipped -= files.num_rows[start]
            start += 1
    step: Step = []
    missing = num_rows
    for file in range(start, len(files.names)):
        for part in files.rows(file):
            position = min(skipped, part.columns.num_rows)
            skipped -= position
            while True:
                taken = part.cut(position, missing)
                step.append((file, taken))
                missing -= taken.columns.num_rows
                position += taken.columns.num_rows
                if missing:
                    break
                yield step
                step, missing = [], num_rows
                if position == part.columns.num_rows:
                    break
    if step:
        yield step


def _batches(
    steps: Iterator[Step], names: Sequence[str], schema: Schema, rank: int, batch_size: int
) -> Generator[tuple[Step, Batch], None, None]:
    """Each step with this rank's part of it, padded to the largest part of a rank."""
    collator, uses = Collator(schema), uses_in_order(schema)
    for step in steps:
        num_rows = sum(part.columns.num_rows for _, part in step)
        if not num_rows:
            yield step, collator.padding()
            continue
        own = list(_share(step, rank * batch_size, batch_size))
        size = sum(part.columns.num_rows for _, part in own)
        tables = [(names[file], _with_labels(part, schema)) for file, part in own]
        batch = collator.batch(decode(tables, size, uses)) if size else None
        yield step, collator.filled(batch, min(num_rows, batch_size))


def _share(step: Step, start: int, num_rows: int) -> Iterator[tuple[int, Rows]]:
    """Rows ``start`` to ``start + num_rows - 1`` of a step, as far as there are some."""
    before = 0
    for file, part in step:
        size = part.columns.num_rows
        first, stop = max(start - before, 0), min(start + num_rows - before, size)
        if first < stop:
            yield file, part.cut(first, stop - first)
        before += size


def _with_labels(part: Rows, schema: Schema) -> pa.Table:
    """The columns that a schema reads: no label was observed."""
    table = part.columns
    for task in schema.tasks:
        table = table.append_column(task.label_column, pa.nulls(table.num_rows, pa.int8()))
    return table


def _write(
    writer: PredictionFiles,
    step: Step,
    probabilities: NDArray[np.float64],
    tasks: Sequence[str],
    first: int,
) -> int:
    """Hand a step's rows to the writer; the number of those of files that are wanted."""
    start, counted = 0, 0
    for file, part in step:
        stop = start + part.columns.num_rows
        columns = dict(zip(part.kept.column_names, part.kept.columns, strict=True))
        found = np.ascontiguousarray(probabilities[start:stop].T)
        columns |= {task: pa.array(column) for task, column in zip(tasks, found, strict=True)}
        writer.add(file, pa.table(columns))
        counted += (stop - start) if file >= first else 0
        start = stop
    return counted
