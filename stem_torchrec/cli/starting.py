"""What the commands that train have in common: their options, and how they end."""

import argparse
from typing import TYPE_CHECKING

from stem_torchrec.cli.options import (
    add_config,
    at_least_zero,
    checkpoint_choice,
    place,
    positive,
)
from stem_torchrec.errors import UserError
from stem_torchrec.stopping.signals import NOTE

if TYPE_CHECKING:
    from stem_torchrec.checkpoint import Initial
    from stem_torchrec.config import Config
    from stem_torchrec.runs.folder import Existing
    from stem_torchrec.training.trainer import Outcome


def add_start(command: argparse.ArgumentParser) -> None:
    """Options on ranks, on the run that is there, and on weights of another one."""
    add_config(command)
    command.add_argument(
        "--nproc",
        type=positive,
        metavar="N",
        help="local workers (default: 1 "
        "on CPU, one per GPU); torchrun's ranks where it started this",
    )
    command.add_argument(
        "--max-restarts",
        type=at_least_zero,
        default=0,
        metavar="K",
        help="start the local workers again up to K times when one is lost; they go on from the "
        "newest checkpoint (torchrun has an option of its own)",
    )
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    existing.add_argument("--overwrite", action="store_true", help="replace the folder's run")
    _add_initial(command)


def _add_initial(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("weights of another run")
    other = group.add_mutually_exclusive_group()
    other.add_argument(
        "--init-from",
        type=place,
        metavar="RUN",
        help="start with the tables and dense weights of another run, by name",
    )
    other.add_argument(
        "--continue-from",
        type=place,
        metavar="RUN",
        help="train another run on, on data that extends its own: with its weights, optimizers, "
        "balancing and place in the schedules",
    )
    group.add_argument(
        "--init-checkpoint",
        type=checkpoint_choice,
        metavar="last|best|STEP",
        help="which of that run's checkpoints (default: last)",
    )
    group.add_argument(
        "--init-map",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a task, feature or other part of a name there, and what it is here; repeatable",
    )
    group.add_argument(
        "--init-new-tasks",
        choices=("shared", "fresh"),
        default="shared",
        help="what the tables of a task that is not there start from",
    )


def existing_of(options: argparse.Namespace) -> "Existing":
    return "resume" if options.resume else "overwrite" if options.overwrite else "refuse"


def initial_of(options: argparse.Namespace) -> "Initial | None":
    """The other run that a new one starts from.

    Raises:
        UserError: there is none such, or the options do not go together.
    """
    from stem_torchrec.checkpoint import Choice, Initial, chosen_step
    from stem_torchrec.runs.folder import require_run

    run_dir = options.init_from or options.continue_from
    if run_dir is None:
        for option, value in (
            ("--init-map", options.init_map),
            ("--init-checkpoint", options.init_checkpoint),
        ):
            if value:
                raise UserError(f"{option}: has no meaning without --init-from or --continue-from")
        return None
    continues = options.init_from is None
    option = "--continue-from" if continues else "--init-from"
    if options.resume:
        raise UserError(f"{option}: starts a run; with --resume it goes on with its own weights")
    require_run(option, run_dir)
    choice: Choice = options.init_checkpoint or "last"
    if choice != "last":
        chosen_step(run_dir, choice)
    names = tuple(options.init_map)
    return Initial(run_dir, names, options.init_new_tasks, choice, continues)


def num_workers_of(options: argparse.Namespace, config: "Config") -> int:
    """Local workers."""
    from stem_torchrec.distributed.ranks import device_type
    from stem_torchrec.launch.launcher import default_num_workers

    number: int = options.nproc or default_num_workers(device_type(config.distributed))
    return number


def note_stop(outcome: "Outcome | None") -> None:
    """Say that a signal has ended the run, before or after its first step."""
    from stem_torchrec.console import print_note
    from stem_torchrec.launch.launcher import under_torchrun

    if outcome is None:
        if not under_torchrun():
            print_note(NOTE)
    elif outcome.stopped is not None:
        goes_on = "" if outcome.failure else "; --resume goes on from there"
        print_note(f"stopped by a signal after step {outcome.stopped}{goes_on}")


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new
