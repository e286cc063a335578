"""One run, read top to bottom: build, loop, evaluate, save."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec import checkpoint
from stem_torchrec.batch import Batch
from stem_torchrec.config import Config
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.distributed.parallel import plan_on_first_rank, shard, sharder_for
from stem_torchrec.distributed.pipeline import Pipeline
from stem_torchrec.distributed.plan import World, check_patterns, make_plan, table_names
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.evaluation import Predictions, evaluation
from stem_torchrec.layers.losses import labelled
from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.optim import Optimizers, learning_rate_factor
from stem_torchrec.recommender import Recommender, TrainStep
from stem_torchrec.run_folder import Existing, Recorder, check_run_dir, create_run
from stem_torchrec.schema import Schema, load_schema
from stem_torchrec.throughput import Throughput

Record = dict[str, Any]
Listener = Callable[[Record], None]


@dataclass
class Position:
    """How far a run has come: finished steps, samples of all ranks, and the place in the data."""

    step: int = 0
    samples: int = 0
    epoch: int = 0
    step_in_epoch: int = 0

    def advance(self, reader: ParquetReader) -> int:
        """Count one more step; returns its real samples of all ranks."""
        samples = reader.samples_in_step(self.step_in_epoch)
        self.step += 1
        self.samples += samples
        self.step_in_epoch += 1
        if self.step_in_epoch == reader.steps_per_epoch:
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
        return samples


class Outcome(NamedTuple):
    """What a finished run leaves.

    Attributes:
        test: the eval record of the test split, or None where there is no such split.
        qps: samples per second of all ranks, or None if there was only warm-up.
    """

    test: Record | None
    qps: float | None


@dataclass(frozen=True)
class Session:
    """A sharded model with what trains it, on this rank."""

    config: Config
    schema: Schema
    ranks: Ranks
    model: DistributedModelParallel
    optimizers: Optimizers
    pipeline: Pipeline
    plan_report: str


def selected_schema(config: Config) -> Schema:
    """The data's schema with the config's features and tasks only."""
    schema = load_schema(config.data.path)
    return schema.select(features=config.data.features, tasks=config.tasks.names)


def build(config: Config, ranks: Ranks) -> Session:
    """Model, plan, sharding, optimizers, pipeline. Collective."""
    schema = selected_schema(config)
    torch.manual_seed(config.run.seed)
    step = TrainStep(Recommender(config, schema, ranks.world_size), ranks.rank_mean)
    planned = plan_on_first_rank(config, step, ranks)
    model = shard(config, step, planned, ranks)
    optimizers = Optimizers(config, model)
    pipeline = Pipeline(model, optimizers, ranks)
    return Session(config, schema, ranks, model, optimizers, pipeline, planned.report)


def check_inputs(config: Config, splits: Sequence[str] | None = None) -> None:
    """Raise the UserErrors that config and data can tell before any rank starts.

    ``splits`` are the splits a command needs; null: train, and the others where they are.
    """
    schema = selected_schema(config)
    with torch.device("meta"):
        check_patterns(config.distributed, table_names(Recommender(config, schema)))
    if splits is None:
        others = [split for split in ("valid", "test") if has_split(config.data.path, split)]
        splits = ["train", *others]
    for split in splits:
        check_split(config.data.path, split, schema)


def plan_offline(config: Config, world: World) -> str:
    """The report of the plan for a world that need not be here."""
    recommender = Recommender(config, selected_schema(config), world.size)
    return make_plan(config, recommender, world, sharder_for(config, world.device)).report


def train(config: Config, ranks: Ranks, *, existing: Existing, listener: Listener) -> Outcome:
    """Train, evaluate and save one run. Collective.

    Args:
        existing: what to do with a run that the folder already holds.
        listener: gets every record, on rank 0 alone.
    """
    ranks.on_first(lambda: check_run_dir(config.run.dir, existing))
    session = build(config, ranks)
    reader = open_split(session, "train")
    position = Position()
    if existing == "resume":
        saved = ranks.on_first(lambda: checkpoint.newest(config.run.dir))
        position = Position(**checkpoint.load(saved, session.model, session.optimizers, ranks))
    else:
        ranks.on_first(lambda: create_run(config, session.plan_report, existing))

    with Recorder(config.run.dir, active=ranks.is_first) as recorder:

        def publish(record: Record) -> None:
            recorder.write(record)
            if ranks.is_first:
                listener(record)

        qps = _fit(session, reader, position, publish)
        test = None
        if has_split(config.data.path, "test"):
            test = evaluate(session, "test", position.step)
            publish(test)
    return Outcome(test, qps)


def _fit(
    session: Session, reader: ParquetReader, position: Position, publish: Listener
) -> float | None:
    """Steps until the epochs or ``max_steps`` are done, with records, evaluations, checkpoints.

    Returns:
        Samples per second of all ranks, warm-up, evaluations and checkpoints left out.
    """
    config, ranks = session.config, session.ranks
    total_steps = total_train_steps(config, reader)
    batches = _stream(reader, position, total_steps)
    metrics = TrainMetrics(
        session.schema.task_names,
        batch_size=config.train.batch_size,
        window=config.train.ne_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )
    throughput = Throughput(ranks.device, config.train.qps_warmup_steps)
    session.model.train()
    while position.step < total_steps:
        factor = learning_rate_factor(config.optim, position.step, total_steps)
        rates = session.optimizers.set_learning_rates(factor)
        metrics.update(session.pipeline.step(batches))
        throughput.count(position.advance(reader))

        step, last = position.step, position.step == total_steps
        if step % config.train.log_every == 0 or last:
            publish(_train_record(position, total_steps, metrics, throughput, rates))
        throughput.pause()
        if _due(config.eval.every, position, last) and has_split(config.data.path, "valid"):
            publish(evaluate(session, "valid", step))
        if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
            _save(session, position)
        throughput.resume()
    return throughput.total()


def _save(session: Session, position: Position) -> None:
    config = session.config
    checkpoint.save(
        config.run.dir / checkpoint.FOLDER,
        position.step,
        checkpoint.state_of(session.model, session.optimizers, asdict(position)),
        session.ranks,
        keep=config.checkpoint.keep,
    )


def total_train_steps(config: Config, reader: ParquetReader) -> int:
    steps = config.train.epochs * reader.steps_per_epoch
    return min(steps, config.train.max_steps or steps)


def _stream(reader: ParquetReader, start: Position, total_steps: int) -> Iterator[Batch]:
    """This rank's batches from ``start`` to the last step, over the epochs' ends."""
    left, skip, epoch = total_steps - start.step, start.step_in_epoch, start.epoch
    while left > 0:
        for batch in islice(reader.epoch(epoch), skip, skip + left):
            yield batch
            left -= 1
        skip, epoch = 0, epoch + 1


def _due(every: int | None, position: Position, last: bool) -> bool:
    """Whether an evaluation follows this step: every so many steps, or at each epoch's end."""
    if every is not None:
        return position.step % every == 0 or last
    return position.step_in_epoch == 0 or last


def _train_record(
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
        **metrics.compute(),
        "lr": dict(rates),
        "balance": {},
    }


def evaluate(session: Session, split: str, step: int) -> Record:
    """Exact metrics of a split, every row once on any number of ranks. Collective.

    Returns:
        The eval record on every rank.
    """
    reader, tasks = open_split(session, split), session.schema.task_names
    predictions = Predictions(len(tasks), has_groups=session.schema.group is not None)
    for batch, logits in session.pipeline.predict(reader.epoch(0)):
        if batch.num_samples > 0:
            predictions.add(logits, labelled(batch.labels, batch.weights), batch.groups)
    joined = predictions.joined(session.ranks.gather_rows)
    record = {"kind": "eval", "split": split, "step": step, "samples": reader.num_rows}
    return session.ranks.on_first(lambda: record | evaluation(tasks, joined))


def evaluate_run(config: Config, ranks: Ranks, split: str) -> Record:
    """Load a run's newest checkpoint on these ranks and evaluate a split. Collective."""
    folder = ranks.on_first(lambda: checkpoint.newest(config.run.dir))
    session = build(config, ranks)
    position = checkpoint.load(folder, session.model, None, ranks)
    return evaluate(session, split, position["step"])


def open_split(session: Session, split: str) -> ParquetReader:
    """The reader of a split: shuffled for ``train``, in file order for the others."""
    config, ranks = session.config, session.ranks
    training = split == "train"
    return ParquetReader(
        config.data.path,
        split,
        session.schema,
        batch_size=config.train.batch_size
        if training
        else config.eval.batch_size or config.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        shuffle=training and config.data.shuffle,
        seed=config.run.seed,
        shuffle_row_groups=config.data.shuffle_row_groups,
        prefetch=config.data.prefetch_batches,
        pin_memory=ranks.device.type == "cuda",
    )


def has_split(path: Path, split: str) -> bool:
    return (path / split).is_dir()
