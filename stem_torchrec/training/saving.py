"""When a run saves a checkpoint, and what goes into it."""

from stem_torchrec import checkpoint
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.records import Listener, Record, Recorder
from stem_torchrec.run_folder import about_run
from stem_torchrec.session import Session
from stem_torchrec.training.position import Position


def saver_of(session: Session, publish: Listener, recorder: Recorder) -> checkpoint.Saver:
    """Writes the run's checkpoints; a save that fails is published as a record."""
    config = session.config

    def failed(step: int, error: str) -> None:
        publish({"kind": "checkpoint", "step": step, "error": error})

    folder = config.run.dir / checkpoint.FOLDER
    # Records first: a run that goes on from a checkpoint has those before it.
    return checkpoint.Saver(config.checkpoint, folder, session.ranks, failed, recorder.upload)


def save_due(config: CheckpointConfig, step: int, last: bool, evaluated: Record | None) -> bool:
    """Whether a checkpoint follows this step; ``evaluated`` is its eval record, if it has one."""
    if last or (config.every is not None and step % config.every == 0):
        return True
    return config.keep_best is not None and evaluated is not None


def content(
    session: Session, position: Position, metrics: TrainMetrics, evaluated: Record | None
) -> checkpoint.Content:
    """What the run has come to; ``evaluated`` is this step's eval record. Collective."""
    name = session.config.checkpoint.keep_best
    value = checkpoint.metric_value(evaluated, name)
    return checkpoint.Content(
        position.step,
        checkpoint.state_of(session.model, session.optimizers, position.state_dict()),
        checkpoint.own_state(metrics, session.fork, session.ranks),
        about_run(session.config, session.schema.task_names, session.table_sharding)
        | checkpoint.about_owners(session.model.module.recommender.model)
        | {"metric": {"name": name, "value": value}},
    )
