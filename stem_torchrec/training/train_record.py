"""The figures that a run records while it trains."""

from collections.abc import Mapping
from typing import Protocol, cast

from stem_torchrec.runs.records import Record, defined
from stem_torchrec.training.memory import peak_memory_bytes
from stem_torchrec.training.metrics import TrainMetrics
from stem_torchrec.training.position import Position
from stem_torchrec.training.session import Session
from stem_torchrec.training.throughput import Throughput


def train_metrics(session: Session) -> TrainMetrics:
    """Losses and NE of this session's tasks, from the run's start."""
    config, ranks = session.config, session.ranks
    return TrainMetrics(
        session.schema.task_names,
        batch_size=config.train.batch_rows,
        window=config.train.ne_window,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )


class Training(Protocol):
    """What a train record tells of."""

    @property
    def session(self) -> Session: ...
    @property
    def position(self) -> Position: ...
    @property
    def metrics(self) -> TrainMetrics: ...
    @property
    def throughput(self) -> Throughput: ...


def train_record(training: Training, total_steps: int, rates: Mapping[str, float]) -> Record:
    """What the train record of this step says; starts the next interval. Collective.

    Args:
        rates: learning rates of the step.
    """
    session, position = training.session, training.position
    return {
        "kind": "train",
        "step": position.step,
        "total_steps": total_steps,
        "epoch": position.epoch,
        "samples": position.samples,
        "skipped": position.skipped,
        "qps": training.throughput.lap(),
        "qps_total": training.throughput.total(),
        "peak_memory_bytes": peak_memory_bytes(session.ranks.device),
        # The record that ends a run off the schedule leaves the mean loss to the one it resumes.
        **training.metrics.compute(start_anew=position.step % session.config.train.log_every == 0),
        "lr": dict(rates),
        "balance": _balance_record(session),
    }


def _balance_record(session: Session) -> Record:
    """The balancing of the last Gram matrix, per task; empty where gradients just add up.

    A figure that the step does not define, such as the cosine of a task without labels, is None.
    """
    figures = session.fork.metrics() if session.fork is not None else {}
    tasks = session.schema.task_names
    record = {
        name: dict(zip(tasks, value.tolist(), strict=True)) if value.dim() else value.item()
        for name, value in figures.items()
    }
    return cast(Record, defined(record))
