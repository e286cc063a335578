"""What the commands of ``prepare`` have in common: a target, and how a signal ends them."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stem_torchrec.cli.options import place
from stem_torchrec.stopping.command import stoppable


def add_target(
    command: argparse.ArgumentParser, *, restartable: bool, extendable: bool = False
) -> None:
    """``--out``, ``--overwrite``, where finished stages are kept ``--fresh``, and where days can be
    added ``--extend`` in place of ``--out``."""
    text = "prepared folder to write"
    if extendable:
        target = command.add_mutually_exclusive_group(required=True)
        target.add_argument("--out", type=place, metavar="DIR", help=text)
        text = "in its place: prepared folder to add later days to, with its vocabularies"
        target.add_argument("--extend", type=place, metavar="DIR", help=text)
    else:
        command.add_argument("--out", type=place, required=True, metavar="DIR", help=text)
    command.add_argument("--overwrite", action="store_true", help="replace the folder")
    if restartable:
        text = "start anew, without what an interrupted run has left"
        command.add_argument("--fresh", action="store_true", help=text)


def prepare_into(options: argparse.Namespace, prepare: Callable[[Path], dict[str, Any]]) -> None:
    """Call ``prepare`` with the folder to write, on a disk; then say what is in it."""
    from stem_torchrec.console import print_stats
    from stem_torchrec.prepare.engine.transfer import local_target

    with local_target(options.out, overwrite=options.overwrite) as out:
        stats = prepare(out)
    print_stats(stats, str(options.out))


def _say_what_is_left(received: signal.Signals, options: argparse.Namespace) -> None:
    from stem_torchrec.console import print_note
    from stem_torchrec.prepare.engine.building import building_folder

    left = "nothing is left"
    if isinstance(options.out, Path) and (folder := building_folder(options.out)).exists():
        left = (
            f"finished stages are kept in {folder}: the same command goes on, --fresh starts anew"
        )
    print_note(f"stopped by {received.name}; {left}")


stoppable_preparation = stoppable(_say_what_is_left)
