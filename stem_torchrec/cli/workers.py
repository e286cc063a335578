"""What each rank runs for a command."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

from stem_torchrec.checkpoint import Choice, Initial
from stem_torchrec.config import Config
from stem_torchrec.console import PredictionConsole, TrainConsole
from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.data.schema import Feature
from stem_torchrec.distributed.ranks import Ranks, start_ranks, stop_ranks
from stem_torchrec.errors import environment_failures
from stem_torchrec.launch.notices import hide_dependency_notices
from stem_torchrec.runs.folder import Existing
from stem_torchrec.runs.records import Record
from stem_torchrec.runs.replayed import Replayed
from stem_torchrec.stopping.interruption import show_stacks_on_request
from stem_torchrec.training.checks import doubtful_columns, doubtful_settings
from stem_torchrec.training.evaluation import Joined
from stem_torchrec.training.finished_run import (
    MeanGates,
    Tables,
    evaluate_run,
    mean_gates_of_run,
    predict_run,
    tables_of_run,
)
from stem_torchrec.training.job import train
from stem_torchrec.training.permutation import Permuted, permuted_metrics
from stem_torchrec.training.trainer import Outcome

T = TypeVar("T")


@lenient_streams()
@environment_failures()
def train_worker(
    config: Config, existing: Existing, initial: Initial | None = None
) -> Outcome | None:
    """Train; the outcome on rank 0, None elsewhere."""
    return _train(config, existing, initial)


@lenient_streams()
@environment_failures()
def replay_worker(
    config: Config,
    replayed: Replayed,
    existing: Existing,
    initial: Initial | None = None,
    notes: Sequence[str] = (),
) -> Outcome | None:
    """Go through days, after some warnings; the outcome on rank 0, None elsewhere."""
    return _train(config, existing, initial, replayed, notes)


def _train(
    config: Config,
    existing: Existing,
    initial: Initial | None,
    replayed: Replayed | None = None,
    notes: Sequence[str] = (),
) -> Outcome | None:
    hide_dependency_notices()
    show_stacks_on_request()
    ranks = start_ranks(config.distributed)
    with TrainConsole() if ranks.is_first else nullcontext() as console:
        listener = console.show if console is not None else _ignore
        if console is not None:
            console.warn([*notes, *doubtful_settings(config), *doubtful_columns(config)])
        outcome = train(
            config,
            ranks,
            existing=existing,
            listener=listener,
            initial=initial,
            replayed=replayed,
        )
    stop_ranks()
    return outcome if ranks.is_first else None


@lenient_streams()
@environment_failures()
def evaluate_worker(config: Config, split: str, choice: Choice = "last") -> Record | None:
    """Evaluate a split; the eval record on rank 0, None elsewhere."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    with PredictionConsole() if ranks.is_first else nullcontext() as console:
        counted = console.show if console is not None else None
        record = evaluate_run(config, ranks, split, choice, counted)
    stop_ranks()
    return record if ranks.is_first else None


def predict_worker(config: Config, split: str, choice: Choice = "last") -> Joined:
    """A run's predictions on a split in file order; in this process, alone."""
    return _alone(config, lambda ranks: predict_run(config, ranks, split, choice))


def tables_worker(config: Config, features: Sequence[Feature], choice: Choice = "last") -> Tables:
    """A run's tables of some features, by owner; in this process, alone."""
    return _alone(config, lambda ranks: tables_of_run(config, ranks, features, choice))


def gates_worker(config: Config, split: str, choice: Choice = "last") -> dict[str, MeanGates]:
    """A run's mean gate weights on a split; in this process, alone."""
    return _alone(config, lambda ranks: mean_gates_of_run(config, ranks, split, choice))


def features_worker(
    config: Config, split: str, features: Sequence[str], repeats: int, choice: Choice = "last"
) -> Permuted:
    """A run's metrics with each feature permuted; in this process, alone."""
    return _alone(
        config, lambda ranks: permuted_metrics(config, ranks, split, features, repeats, choice)
    )


@lenient_streams()
@environment_failures()
def _alone(config: Config, function: Callable[[Ranks], T]) -> T:
    """``function`` in a job of one rank, which is ended after it."""
    hide_dependency_notices()
    ranks = start_ranks(config.distributed)
    try:
        return function(ranks)
    finally:
        stop_ranks()


def _ignore(record: Record) -> None:
    """Ranks but the first show nothing."""
