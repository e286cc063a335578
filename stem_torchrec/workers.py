"""What each rank runs for a command."""

from contextlib import nullcontext

from stem_torchrec.checks import doubtful_settings
from stem_torchrec.config import Config
from stem_torchrec.console import TrainConsole
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from stem_torchrec.notices import hide_dependency_notices
from stem_torchrec.run_folder import Existing
from stem_torchrec.trainer import Outcome, Record, evaluate_run, train


def train_worker(config: Config, existing: Existing) -> Outcome | None:
    """Train; the outcome on rank 0, None elsewhere."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    with TrainConsole() if ranks.is_first else nullcontext() as console:
        listener = console.show if console is not None else _ignore
        if console is not None:
            console.warn(doubtful_settings(config))
        outcome = train(config, ranks, existing=existing, listener=listener)
    stop_ranks()
    return outcome if ranks.is_first else None


def evaluate_worker(config: Config, split: str) -> Record | None:
    """Evaluate a split; the eval record on rank 0, None elsewhere."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    record = evaluate_run(config, ranks, split)
    stop_ranks()
    return record if ranks.is_first else None


def _ignore(record: Record) -> None:
    """Ranks but the first show nothing."""
