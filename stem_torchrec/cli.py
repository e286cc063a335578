"""The command line: which command, and its exit code.

The commands are in ``commands/``; they and ``console.py`` are all that prints for people.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import stem_torchrec
from stem_torchrec.commands.analyze import add_analyze
from stem_torchrec.commands.compare import add_compare
from stem_torchrec.commands.doctor import add_doctor
from stem_torchrec.commands.evaluate import add_evaluate
from stem_torchrec.commands.plan import add_plan
from stem_torchrec.commands.prepare import add_prepare, refuse_check_of_source
from stem_torchrec.commands.train import add_train
from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.environment import environment_failure
from stem_torchrec.errors import CheckpointError, UserError, WorkerError
from stem_torchrec.parent_watch import end_with_parent
from stem_torchrec.redaction import without_passwords
from stem_torchrec.versions import version_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 a mistake of the user (one message), 1 anything else.

    Where the machine fails, or a checkpoint cannot be written, the 1 comes with one line; so it
    does where stdout has not taken all results.
    """
    with lenient_streams() as output:
        code = _run(arguments)
        if (lost := output.lost()) is not None:
            print(f"error: {lost}", file=sys.stderr)
            code = code or 1
    return code


def _run(arguments: Sequence[str] | None) -> int:
    options, rest = _parser().parse_known_args(arguments)
    end_with_parent()
    try:
        refuse_check_of_source(options)
        code = options.run(options, rest)
    except UserError as error:
        if not _left_to_torchrun(error):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        told = error if isinstance(error, CheckpointError) else environment_failure(error)
        if not _left_to_torchrun(told or error) and told is not None:
            print(f"error: {told}", file=sys.stderr)
        if told is None:
            raise
        return 1
    return code or 0


class _Parser(argparse.ArgumentParser):
    """Of the commands, too: argparse echoes what it does not understand."""

    def error(self, message: str) -> NoReturn:
        super().error(without_passwords(message))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser("stem-torchrec", description=stem_torchrec.__doc__)
    parser.add_argument("--version", action="version", version=version_line())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_prepare(commands)
    add_train(commands)
    add_evaluate(commands)
    add_plan(commands)
    add_doctor(commands)
    add_compare(commands)
    add_analyze(commands)
    return parser


def _left_to_torchrun(error: Exception) -> bool:
    """Hand a rank's error to torchrun, which reports the first of all ranks' once."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        get_error_handler().record_exception(error)
    except OSError:  # of the disk for temporary files
        return False
    return True
