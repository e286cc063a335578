"""A run from its config: its folder is held, the model built, the trainer started."""

from contextlib import ExitStack

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import environment_failures
from stem_torchrec.runs.folder import Existing, check_run
from stem_torchrec.runs.records import Listener
from stem_torchrec.runs.replayed import Replayed, write_replayed
from stem_torchrec.runs.restart import existing_after_restart, holder
from stem_torchrec.runs.schema import schema_of_new, schema_of_run
from stem_torchrec.runs.shared_folder import check_shared
from stem_torchrec.storage.lock.folder_lock import locked
from stem_torchrec.training.replay import Replay
from stem_torchrec.training.session import build
from stem_torchrec.training.settling import settled
from stem_torchrec.training.trainer import Outcome, Trainer


def train(
    config: Config,
    ranks: Ranks,
    *,
    existing: Existing,
    listener: Listener,
    initial: checkpoint.Initial | None = None,
    replayed: Replayed | None = None,
) -> Outcome:
    """Train, evaluate and save one run. Collective.

    Args:
        initial: another run whose weights are the first ones; not when resuming.
        existing: what to do with a run that the folder already holds.
        listener: gets every record, on rank 0 alone.
        replayed: the days to go through, one after the other; epochs of the train split if None.

    Raises:
        UserError: the folder is not to be written, or another job is at work in it.
    """
    with ExitStack() as claim:
        existing = ranks.on_first(lambda: _claim(claim, config, existing, replayed))
        check_shared("run.dir", config.run.dir, ranks)
        resume = existing == "resume"
        schema = schema_of_run(config, ranks) if resume else schema_of_new(config, initial, ranks)
        config = ranks.on_first(lambda: settled(config, schema))
        session = build(config, ranks, schema)
        untrained = initial is None
        course = Replay(session, replayed, untrained=untrained) if replayed is not None else None
        trainer = Trainer(session, listener, course)
        if resume:
            trainer.go_on()
        else:
            trainer.begin(existing, initial)
            if replayed is not None:
                ranks.on_first(lambda: write_replayed(config.run.dir, replayed))
        return trainer.run()


def _claim(
    claim: ExitStack, config: Config, existing: Existing, replayed: Replayed | None
) -> Existing:
    """Hold the run's folder, if it may be written; what to do with the run in it."""
    check_run(config, existing_after_restart(config.run.dir, existing), replayed)
    with environment_failures(config.run.dir):
        claim.enter_context(locked("run.dir", config.run.dir, holder()))
    # The job that was at work there before may have ended only now.
    existing = existing_after_restart(config.run.dir, existing)
    check_run(config, existing, replayed)
    return existing
