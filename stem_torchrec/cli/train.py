"""``train``: one run, or the rest of one."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_config,
    at_least_zero,
    checkpoint_choice,
    config_keys,
    own_options,
    place,
    positive,
)
from stem_torchrec.config.reading import load_config
from stem_torchrec.errors import UserError
from stem_torchrec.stopping.signals import NOTE, leaving_at_signals

if TYPE_CHECKING:
    from stem_torchrec.checkpoint import Initial


def add_train(commands: Commands) -> None:
    command = add_command(commands, "train", "train, evaluate and save one run", config_keys)
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
    command.set_defaults(run=train)


def _add_initial(command: argparse.ArgumentParser) -> None:
    initial = command.add_argument_group("weights of another run")
    initial.add_argument(
        "--init-from",
        type=place,
        metavar="RUN",
        help="start with the tables and dense weights of another run, by name",
    )
    initial.add_argument(
        "--init-checkpoint",
        type=checkpoint_choice,
        metavar="last|best|STEP",
        help="which of that run's checkpoints (default: last)",
    )
    initial.add_argument(
        "--init-map",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a task, feature or other part of a name there, and what it is here; repeatable",
    )
    initial.add_argument(
        "--init-new-tasks",
        choices=("shared", "fresh"),
        default="shared",
        help="what the tables of a task that is not there start from",
    )


@leaving_at_signals()
def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_evaluation, print_note, print_start

    config = load_config(options.config, rest, options=own_options(options))
    print_start("importing torch and TorchRec")
    from stem_torchrec.cli.workers import train_worker
    from stem_torchrec.distributed.ranks import device_type
    from stem_torchrec.launch.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.runs.folder import Existing
    from stem_torchrec.training.checks import check_start

    existing: Existing = (
        "resume" if options.resume else "overwrite" if options.overwrite else "refuse"
    )
    initial = _initial(options)
    if initial is not None and existing == "resume":
        raise UserError("--init-from: starts a run; with --resume it goes on with its own weights")
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_start(config, existing, num_workers, print_start)
        print_start(f"starting {num_workers} ranks")
    outcome = run_workers(
        num_workers, train_worker, config, existing, initial, max_restarts=options.max_restarts
    )
    if outcome is None:
        if not under_torchrun():
            print_note(NOTE)
        return
    if outcome.stopped is not None:
        goes_on = "" if outcome.failure else "; --resume goes on from there"
        print_note(f"stopped by a signal after step {outcome.stopped}{goes_on}")
    elif outcome.test is not None:
        print_evaluation(outcome.test, outcome.qps)
        if outcome.best == outcome.test["step"]:
            print_note(f"tested is the best checkpoint, of step {outcome.best}")
        elif outcome.best is not None:
            print_note(
                f"tested are the last weights; checkpoint.keep_best keeps step {outcome.best} too"
            )
    if outcome.failure is not None:
        raise outcome.failure


def _initial(options: argparse.Namespace) -> "Initial | None":
    from stem_torchrec.checkpoint import Choice, Initial, chosen_step
    from stem_torchrec.runs.folder import require_run

    if options.init_from is None:
        if options.init_map:
            raise UserError("--init-map: has no meaning without --init-from")
        if options.init_checkpoint is not None:
            raise UserError("--init-checkpoint: has no meaning without --init-from")
        return None
    require_run("--init-from", options.init_from)
    choice: Choice = options.init_checkpoint or "last"
    if choice != "last":
        chosen_step(options.init_from, choice)
    return Initial(options.init_from, tuple(options.init_map), options.init_new_tasks, choice)


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new
