"""One run, read top to bottom: build, loop, evaluate, save."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from stem_torchrec import checkpoint
from stem_torchrec.batch import Batch
from stem_torchrec.config import CheckpointConfig, Config
from stem_torchrec.data.position import ReadPosition
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.distributed.interruption import Interruption, Stopped
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.evaluation import Joined, Predictions, evaluation
from stem_torchrec.layers.losses import labelled
from stem_torchrec.memory import peak_memory_bytes
from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.optim import learning_rate_factor
from stem_torchrec.records import Recorder, has_evaluation
from stem_torchrec.restart import existing_after_restart, mark
from stem_torchrec.run_folder import (
    Existing,
    about_run,
    check_run,
    continue_run,
    create_run,
    write_init,
)
from stem_torchrec.session import Session, build, has_split, open_split
from stem_torchrec.skipped import SkippedSteps
from stem_torchrec.throughput import Throughput

Record = dict[str, Any]
Listener = Callable[[Record], None]


@dataclass
class Position:
    """How far a run has come: finished steps, samples of all ranks, and the place in the data.

    ``skipped`` of the steps were left out for bad numbers; their samples count.
    """

    read: ReadPosition
    step: int = 0
    samples: int = 0
    skipped: int = 0

    def advance(self, reader: ParquetReader) -> int:
        """Count one more step; returns its real samples of all ranks."""
        samples = self.read.division.samples_in_step(self.read.step)
        self.step += 1
        self.samples += samples
        self.read = reader.after(self.read)
        return samples

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "samples": self.samples,
            "skipped": self.skipped,
            **self.read.state_dict(),
        }


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        test: the eval record of the test split, or None where there is no such split.
        qps: samples per second of all ranks, or None if there was only warm-up.
        stopped: the step after which a signal ended it, or None if it is complete.
    """

    test: Record | None
    qps: float | None
    stopped: int | None = None


def train(
    config: Config,
    ranks: Ranks,
    *,
    existing: Existing,
    listener: Listener,
    initial: checkpoint.Initial | None = None,
) -> Outcome:
    """Train, evaluate and save one run. Collective.

    Args:
        initial: another run whose weights are the first ones; not when resuming.
        existing: what to do with a run that the folder already holds.
        listener: gets every record, on rank 0 alone.
    """
    existing = ranks.on_first(lambda: existing_after_restart(config.run.dir, existing))
    ranks.on_first(lambda: check_run(config, existing))
    session = build(config, ranks)
    reader = open_split(session, "train", for_training=True)
    position = Position(reader.start())
    metrics = _train_metrics(session)
    if existing == "resume":
        folder = checkpoint.newest_valid(config.run.dir, ranks)
        saved = checkpoint.load(folder, session.model, session.optimizers, ranks)
        position = Position(
            reader.resumed(saved), saved["step"], saved["samples"], saved["skipped"]
        )
        ranks.on_first(lambda: continue_run(config, session.plan_report, position.step))
        checkpoint.load_own(folder, metrics, session.fork, ranks)
    else:
        report = _start_from(session, initial)
        ranks.on_first(lambda: create_run(config, session.plan_report, existing))
        ranks.on_first(lambda: mark(config.run.dir))
        if report is not None and ranks.is_first:
            write_init(config.run.dir, report)
            listener({"kind": "init", **report})

    interruption = Interruption(
        ranks, grace_s=config.run.grace_s, limit_s=config.distributed.timeout_s
    )
    session.pipeline.interruption = interruption
    recorder = Recorder(config.run.dir, active=ranks.is_first, step=position.step)
    with interruption, recorder:

        def publish(record: Record) -> None:
            recorder.write(record)
            if ranks.is_first:
                listener(record)

        saver = _saver(session, publish, recorder)
        qps, test, stopped = None, None, None
        try:
            qps = _fit(session, reader, position, metrics, saver, publish)
            if has_split(config.data.path, "test"):
                test = evaluate(session, "test", position.step)
                publish(test)
        except Stopped:
            stopped = position.step
        saver.wait()
        saver.close()
    return Outcome(test, qps, stopped)


def _fit(
    session: Session,
    reader: ParquetReader,
    position: Position,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    publish: Listener,
) -> float | None:
    """Steps until the epochs or ``max_steps`` are done, with records, evaluations, checkpoints.

    Returns:
        Samples per second of all ranks, warm-up, evaluations and checkpoints left out.

    Raises:
        Stopped: a signal has ended it, with a checkpoint.
    """
    config = session.config
    total_steps = total_train_steps(config, reader, position)
    batches = _stream(reader, position, total_steps)
    interruption = session.pipeline.interruption
    assert interruption is not None
    throughput = Throughput(session.ranks.device, config.train.qps_warmup_steps)
    skipped = SkippedSteps(config, session.schema.task_names, session.ranks, position.skipped)
    if _owes_evaluation(session, position, total_steps):
        publish(evaluate(session, "valid", position.step))
    session.model.train()
    while position.step < total_steps:
        factor = learning_rate_factor(config.optim, position.step, total_steps)
        rates = session.optimizers.set_learning_rates(factor)
        if session.fork is not None:
            session.fork.begin(position.step)
        interruption.beat()
        output = session.pipeline.step(batches)
        skipped.count(session.pipeline.skipped, position.step + 1)
        if session.pipeline.skipped is None:
            metrics.update(output)
        throughput.count(position.advance(reader))
        position.skipped = skipped.total

        step, last = position.step, position.step == total_steps
        if step % config.train.log_every == 0 or last:
            publish(_train_record(session, position, total_steps, metrics, throughput, rates))
        throughput.pause()
        stop, evaluated = interruption.agreed(), None
        try:
            if not stop:
                evaluated = _evaluate_if_due(session, position, last, publish)
        except Stopped:
            stop = True
        interruption.rest()
        if stop or _save_due(config.checkpoint, step, last, evaluated):
            _save(session, position, metrics, saver, evaluated)
        if stop:
            raise Stopped
        throughput.resume()
    return throughput.total()


def _saver(session: Session, publish: Listener, recorder: Recorder) -> checkpoint.Saver:
    config = session.config

    def failed(step: int, error: str) -> None:
        publish({"kind": "checkpoint", "step": step, "error": error})

    folder = config.run.dir / checkpoint.FOLDER
    # Records first: a run that goes on from a checkpoint has those before it.
    return checkpoint.Saver(config.checkpoint, folder, session.ranks, failed, recorder.upload)


def _save_due(config: CheckpointConfig, step: int, last: bool, evaluated: Record | None) -> bool:
    """Whether a checkpoint follows this step."""
    if last or (config.every is not None and step % config.every == 0):
        return True
    return config.keep_best is not None and evaluated is not None


def _save(
    session: Session,
    position: Position,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    evaluated: Record | None,
) -> None:
    """Save what the run has come to; ``evaluated`` is this step's eval record. Collective."""
    name = session.config.checkpoint.keep_best
    value = checkpoint.metric_value(evaluated, name)
    saver.save(
        checkpoint.Content(
            position.step,
            checkpoint.state_of(session.model, session.optimizers, position.state_dict()),
            checkpoint.own_state(metrics, session.fork, session.ranks),
            about_run(session.config, session.schema.task_names, session.table_sharding)
            | {"metric": {"name": name, "value": value}},
        )
    )


def total_train_steps(config: Config, reader: ParquetReader, position: Position) -> int:
    """Steps of the run: those done, those left of this epoch, and those of the epochs to come.

    The same at any position of an uninterrupted run; after going on with other ranks or another
    batch size the rest has other steps.
    """
    left, epochs_left = 0, config.train.epochs - position.read.epoch
    if epochs_left > 0:
        left = position.read.steps_left + (epochs_left - 1) * reader.steps_per_epoch
    steps = position.step + left
    return min(steps, config.train.max_steps or steps)


def _stream(reader: ParquetReader, start: Position, total_steps: int) -> Iterator[Batch]:
    """This rank's batches from ``start`` to the last step, over the epochs' ends."""
    left, place = total_steps - start.step, start.read
    while left > 0:
        for batch in islice(reader.batches(place), left):
            yield batch
            left -= 1
        place = reader.start(place.epoch + 1)


def _due(every: int | None, position: Position, last: bool) -> bool:
    """Whether an evaluation follows this step: every so many steps, or at each epoch's end."""
    if every is not None:
        return position.step % every == 0 or last
    return position.read.is_start or last


def _start_from(session: Session, initial: checkpoint.Initial | None) -> Record | None:
    if initial is None:
        return None
    return checkpoint.load_initial(session.model, session.schema, initial, session.ranks)


def _train_metrics(session: Session) -> TrainMetrics:
    config, ranks = session.config, session.ranks
    return TrainMetrics(
        session.schema.task_names,
        batch_size=config.train.batch_size,
        window=config.train.ne_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )


def _evaluate_if_due(
    session: Session, position: Position, last: bool, publish: Listener
) -> Record | None:
    """The published eval record of this step, if there is to be one. Collective.

    Raises:
        Stopped: the ranks have agreed to stop in the middle of it.
    """
    config = session.config
    if not (_due(config.eval.every, position, last) and has_split(config.data.path, "valid")):
        return None
    evaluated = evaluate(session, "valid", position.step)
    publish(evaluated)
    return evaluated


def _owes_evaluation(session: Session, position: Position, total_steps: int) -> bool:
    """Whether the run was stopped before the evaluation that follows its step. Collective."""
    config, step = session.config, position.step
    if step == 0 or not has_split(config.data.path, "valid"):
        return False
    due = _due(config.eval.every, position, step == total_steps)
    done = session.ranks.on_first(lambda: has_evaluation(config.run.dir, "valid", step))
    return due and not done


def _train_record(
    session: Session,
    position: Position,
    total_steps: int,
    metrics: TrainMetrics,
    throughput: Throughput,
    rates: Mapping[str, float],
) -> Record:
    return {
        "kind": "train",
        "step": position.step,
        "total_steps": total_steps,
        "samples": position.samples,
        "skipped": position.skipped,
        "qps": throughput.lap(),
        "qps_total": throughput.total(),
        "peak_memory_bytes": peak_memory_bytes(session.ranks.device),
        # The record that ends a run off the schedule leaves the mean loss to the one it resumes.
        **metrics.compute(start_anew=position.step % session.config.train.log_every == 0),
        "lr": dict(rates),
        "balance": _balance_record(session),
    }


def _balance_record(session: Session) -> Record:
    """The balancing of the last step, per task; empty where the tasks' gradients just add up."""
    figures = session.fork.metrics() if session.fork is not None else {}
    tasks = session.schema.task_names
    return {
        name: dict(zip(tasks, value.tolist(), strict=True)) if value.dim() else value.item()
        for name, value in figures.items()
    }


def evaluate(session: Session, split: str, step: int) -> Record:
    """Exact metrics of a split, every row once on any number of ranks. Collective.

    Returns:
        The eval record on every rank.
    """
    reader, tasks = open_split(session, split), session.schema.task_names
    joined = predict(session, reader)
    record = {"kind": "eval", "split": split, "step": step, "samples": reader.num_rows}
    return session.ranks.on_first(lambda: record | evaluation(tasks, joined))


def predict(session: Session, reader: ParquetReader) -> Joined | None:
    """Predictions on the reader's rows on rank 0, None elsewhere. Collective."""
    tasks = session.schema.task_names
    predictions = Predictions(len(tasks), has_groups=session.schema.group is not None)
    for batch, logits in session.pipeline.predict(reader.epoch(0)):
        if batch.num_samples > 0:
            predictions.add(logits, labelled(batch.labels, batch.weights), batch.groups)
    if session.pipeline.interruption is not None:
        session.pipeline.interruption.rest()
    return predictions.joined(session.ranks.gather_rows)
