"""``tune``: the values of config keys with which a model is best on the valid split."""

import argparse
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_config,
    at_least_zero,
    config_keys,
    local_place,
    positive,
)
from stem_torchrec.errors import UserError

_NEEDED = ("optuna", "sklearn")


def add_tune(commands: Commands) -> None:
    text = "search the values of config keys that are best on the valid split"
    command = add_command(commands, "tune", text, config_keys)
    add_config(command)
    command.add_argument(
        "--space",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML file: section.key: {low, high, log, step}, or a list of choices",
    )
    command.add_argument(
        "--out", type=local_place, required=True, metavar="DIR", help="study, runs and report"
    )
    command.add_argument(
        "--trials", type=positive, metavar="N", help="trials of the study, whoever runs them"
    )
    command.add_argument(
        "--minutes", type=_minutes, metavar="M", help="time after which this command ends"
    )
    command.add_argument("--seed", type=at_least_zero, default=0, help="seed of the choices")
    command.add_argument(
        "--nproc", type=positive, metavar="N", help="ranks of each trial (default: as in train)"
    )
    command.add_argument(
        "--keep-checkpoints", action="store_true", help="keep the weights of trials that are over"
    )
    command.set_defaults(run=tune)


def tune(options: argparse.Namespace, rest: Sequence[str]) -> None:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(
            f"tune: {missing[0]} is not installed; pip install 'stem-torchrec[tune]' does that"
        )
    from stem_torchrec.analysis.report import Table
    from stem_torchrec.analysis.tune import tuning
    from stem_torchrec.console import StageConsole, print_note, print_report
    from stem_torchrec.launch.notices import hide_dependency_notices

    hide_dependency_notices()
    request = tuning.Request(
        config=options.config,
        space=options.space,
        out=options.out,
        trials=options.trials,
        minutes=options.minutes,
        seed=options.seed,
        nproc=options.nproc,
        keep_checkpoints=options.keep_checkpoints,
        overrides=rest,
    )
    console = StageConsole()
    try:
        command = _command(options, rest)
        found = tuning.tune(request, command, console.note, console.watch)
    except (KeyboardInterrupt, SystemExit) as error:  # Ctrl-C, and any other stop signal
        print_note("interrupted; the same command goes on where this one stopped")
        raise SystemExit(error.code if isinstance(error, SystemExit) else 130) from None
    values = [[name, str(value)] for name, value in found.best.params.items()]
    title = f"trial {found.best.number}, {found.metric} {found.best.value:.4f}"
    print_report(title, Table(["key", "best"], values), found.written)
    if found.failures:
        print_note(f"{found.failures} trials failed; the report says why")


def _command(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """The command line again."""
    words = ["stem-torchrec", "tune", "--config", str(options.config)]
    words += ["--space", str(options.space), "--out", str(options.out)]
    words += ["--trials", str(options.trials)] if options.trials else []
    words += ["--minutes", f"{options.minutes:g}"] if options.minutes else []
    words += ["--seed", str(options.seed)]
    words += ["--nproc", str(options.nproc)] if options.nproc else []
    words += ["--keep-checkpoints"] if options.keep_checkpoints else []
    return shlex.join([*words, *rest])


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value
