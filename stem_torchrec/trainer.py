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
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.evaluation import Joined, Predictions, evaluation
from stem_torchrec.layers.losses import labelled
from stem_torchrec.memory import peak_memory_bytes
from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.optim import learning_rate_factor
from stem_torchrec.run_folder import (
    Existing,
    Recorder,
    about_run,
    check_run,
    continue_run,
    create_run,
    write_init,
)
from stem_torchrec.session import Session, build, has_split, open_split
from stem_torchrec.throughput import Throughput

Record = dict[str, Any]
Listener = Callable[[Record], None]


@dataclass
class Position:
    """How far a run has come: finished steps, samples of all ranks, and the place in the data."""

    read: ReadPosition
    step: int = 0
    samples: int = 0

    def advance(self, reader: ParquetReader) -> int:
        """Count one more step; returns its real samples of all ranks."""
        samples = self.read.division.samples_in_step(self.read.step)
        self.step += 1
        self.samples += samples
        self.read = reader.after(self.read)
        return samples

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "samples": self.samples, **self.read.state_dict()}


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        test: the eval record of the test split, or None where there is no such split.
        qps: samples per second of all ranks, or None if there was only warm-up.
    """

    test: Record | None
    qps: float | None


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
    ranks.on_first(lambda: check_run(config, existing))
    session = build(config, ranks)
    reader = open_split(session, "train", for_training=True)
    position = Position(reader.start())
    metrics = _train_metrics(session)
    if existing == "resume":
        folder = checkpoint.newest_valid(config.run.dir, ranks)
        saved = checkpoint.load(folder, session.model, session.optimizers, ranks)
        position = Position(reader.resumed(saved), saved["step"], saved["samples"])
        ranks.on_first(lambda: continue_run(config, session.plan_report, position.step))
        checkpoint.load_own(folder, metrics, session.fork, ranks)
    else:
        report = _start_from(session, initial)
        ranks.on_first(lambda: create_run(config, session.plan_report, existing))
        if report is not None and ranks.is_first:
            write_init(config.run.dir, report)
            listener({"kind": "init", **report})

    with Recorder(config.run.dir, active=ranks.is_first, step=position.step) as recorder:

        def publish(record: Record) -> None:
            recorder.write(record)
            if ranks.is_first:
                listener(record)

        saver = _saver(session, publish)
        qps = _fit(session, reader, position, metrics, saver, publish)
        test = None
        if has_split(config.data.path, "test"):
            test = evaluate(session, "test", position.step)
            publish(test)
        saver.wait()
        saver.close()
    return Outcome(test, qps)


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
    """
    config, evaluated = session.config, None
    total_steps = total_train_steps(config, reader, position)
    batches = _stream(reader, position, total_steps)
    throughput = Throughput(session.ranks.device, config.train.qps_warmup_steps)
    session.model.train()
    while position.step < total_steps:
        factor = learning_rate_factor(config.optim, position.step, total_steps)
        rates = session.optimizers.set_learning_rates(factor)
        if session.fork is not None:
            session.fork.begin(position.step)
        metrics.update(session.pipeline.step(batches))
        throughput.count(position.advance(reader))

        step, last = position.step, position.step == total_steps
        if step % config.train.log_every == 0 or last:
            publish(_train_record(session, position, total_steps, metrics, throughput, rates))
        throughput.pause()
        if _due(config.eval.every, position, last) and has_split(config.data.path, "valid"):
            evaluated = evaluate(session, "valid", step)
            publish(evaluated)
        if _save_due(config.checkpoint, step, last, evaluated):
            _save(session, position, metrics, saver, evaluated)
        throughput.resume()
    return throughput.total()


def _saver(session: Session, publish: Listener) -> checkpoint.Saver:
    config = session.config

    def failed(step: int, error: str) -> None:
        publish({"kind": "checkpoint", "step": step, "error": error})

    return checkpoint.Saver(
        config.checkpoint, config.run.dir / checkpoint.FOLDER, session.ranks, failed
    )


def _save_due(config: CheckpointConfig, step: int, last: bool, evaluated: Record | None) -> bool:
    """Whether a checkpoint follows this step."""
    if last or (config.every is not None and step % config.every == 0):
        return True
    return config.keep_best is not None and evaluated is not None and evaluated["step"] == step


def _save(
    session: Session,
    position: Position,
    metrics: TrainMetrics,
    saver: checkpoint.Saver,
    evaluated: Record | None,
) -> None:
    """Save what the run has come to; ``evaluated`` is the last eval record. Collective."""
    is_new = evaluated is not None and evaluated["step"] == position.step
    name = session.config.checkpoint.keep_best
    value = checkpoint.metric_value(evaluated if is_new else None, name)
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
    return predictions.joined(session.ranks.gather_rows)
