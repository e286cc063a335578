"""When a run saves a checkpoint, and what is kept of the run in the end."""

from contextlib import suppress

from stem_torchrec import checkpoint
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.errors import UserError
from stem_torchrec.runs.records import Record
from stem_torchrec.storage.place import Place
from stem_torchrec.training.position import Position
from stem_torchrec.training.session import Session


def save_due(config: CheckpointConfig, step: int, last: bool, evaluated: Record | None) -> bool:
    """Whether a checkpoint follows this step; ``evaluated`` is its eval record, if it has one."""
    if last or (config.every is not None and step % config.every == 0):
        return True
    return config.keep_best is not None and evaluated is not None


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
