"""When a run saves a checkpoint, what it says of the run, and what is kept of it in the end."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from stem_torchrec import checkpoint
from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.distributed.precision import about_precision
from stem_torchrec.errors import CheckpointError, UserError
from stem_torchrec.runs.folder import about_run
from stem_torchrec.runs.records import Record
from stem_torchrec.storage.place import Place
from stem_torchrec.training.position import Position
from stem_torchrec.training.session import Session

_log = logging.getLogger(__name__)


def save_due(config: CheckpointConfig, step: int, last: bool, evaluated: Record | None) -> bool:
    """Whether a checkpoint follows this step; ``evaluated`` is its eval record, if it has one."""
    if last or (config.every is not None and step % config.every == 0):
        return True
    return config.keep_best is not None and evaluated is not None


def about_checkpoint(
    session: Session, position: Position, evaluated: Record | None
) -> dict[str, Any]:
    """What a checkpoint's manifest says; ``evaluated`` is the eval record of its step."""
    config = session.config
    return {
        **about_run(config, session.schema, session.table_sharding),
        **checkpoint.about_owners(session.recommender.model),
        "precision": about_precision(config),
        "epoch": position.epoch,
        "metric": _metric(config.checkpoint, evaluated),
    }


def note_metric(session: Session, position: Position, evaluated: Record) -> None:
    """Let the checkpoint that a run goes on from say how good it is. Collective.

    It says nothing of that where the run was stopped between saving and evaluating.
    """
    config, step = session.config, position.step

    def note() -> None:
        folder, metric = config.run.dir / checkpoint.FOLDER, _metric(config.checkpoint, evaluated)
        try:
            checkpoint.add_to_manifest(folder, step, {"metric": metric})
        except (OSError, UserError) as error:
            _log.warning("the checkpoint of step %d does not say how good it is: %s", step, error)

    if config.checkpoint.keep_best is not None:
        session.ranks.on_first(note)


def _metric(config: CheckpointConfig, evaluated: Record | None) -> dict[str, Any]:
    name = config.keep_best
    return {"name": name, "value": checkpoint.metric_value(evaluated, name)}


class LastBalance:
    """The figures of the last balancing, for the records; the same on every rank."""

    def __init__(self, fork: BalancedFork | None) -> None:
        self._fork = fork

    def state_dict(self) -> dict[str, Any] | None:
        return self._fork.last_state() if self._fork is not None else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if self._fork is not None:
            self._fork.set_last_state(state)

    def merge(self, states: Sequence[Mapping[str, Any] | None]) -> None:
        self.load_state_dict(states[0])


def keep_last(session: Session, position: Position, saver: checkpoint.Saver) -> str | None:
    """Wait for the checkpoint that the run ends with; try it again where it failed. Collective.

    Returns:
        Why nobody can go on from there, and what is kept instead; None if all is well.
    """
    run_dir, step, ranks = session.config.run.dir, position.step, session.ranks
    saver.wait()
    if saver.failure is not None and ranks.on_first(lambda: saver.published != step):
        saver.try_again()
    return ranks.on_first(
        lambda: _missing(run_dir, step, None if saver.published == step else saver.failure)
    )


def best_kept(session: Session) -> int | None:
    """The step whose checkpoint ``checkpoint.keep_best`` keeps; None where there is none.

    Collective.
    """
    config = session.config
    metric = config.checkpoint.keep_best

    def find() -> int | None:
        with suppress(UserError):  # a store that does not answer: what is missing is said already
            return checkpoint.best_step(config.run.dir / checkpoint.FOLDER, metric)
        return None

    return None if metric is None else session.ranks.on_first(find)


def _missing(run_dir: Place, step: int, failure: str | None) -> str | None:
    """What is in the run's folder counts, not what was done for it: others may have removed it."""
    if step == 0:
        return None
    folder = run_dir / checkpoint.FOLDER
    try:
        saved = checkpoint.saved_steps(folder)
        described = (run_dir / "config.yaml").is_file()
    except UserError as error:
        return f"whether the checkpoint of step {step} is there is not known: {error}"
    if step in saved and described and failure is None:
        return None
    if failure is not None:
        reason = f"checkpoint of step {step} failed: {failure}"
    elif step not in saved:
        reason = f"checkpoint of step {step} is no longer in {folder}"
    else:
        reason = f"{run_dir / 'config.yaml'} is no longer there, without which nothing reads a run"
    older = [number for number in saved if number < step]
    if described and older:
        kept = f"the newest that is kept is of step {older[-1]}, from which --resume goes on"
    else:
        kept = "nothing of what was trained is kept, on a disk or in memory"
    return f"{reason}; {kept}"


def failure_of(unsaved: str | None, records: Exception | None) -> Exception | None:
    """One error for both, the records' kind if it is theirs too."""
    if unsaved is None:
        return records
    if records is None:
        return CheckpointError(unsaved)
    return type(records)(f"{unsaved}; {records}")
