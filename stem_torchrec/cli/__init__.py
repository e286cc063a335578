"""The command line: which command, and its exit code.

A file per command; they and ``console/`` are all that prints for people.
"""

import os
import signal
import sys
from collections.abc import Sequence

import stem_torchrec
from stem_torchrec.cli.analyze import add_analyze
from stem_torchrec.cli.compare import add_compare
from stem_torchrec.cli.doctor import add_doctor
from stem_torchrec.cli.evaluate import add_evaluate
from stem_torchrec.cli.export import add_export
from stem_torchrec.cli.options import CommandParser
from stem_torchrec.cli.plan import add_plan
from stem_torchrec.cli.predict import add_predict
from stem_torchrec.cli.prepare import add_prepare, refuse_check_of_source
from stem_torchrec.cli.replay import add_replay
from stem_torchrec.cli.serve import add_serve
from stem_torchrec.cli.train import add_train
from stem_torchrec.cli.tune import add_tune
from stem_torchrec.console.streams import lenient_streams
from stem_torchrec.errors import (
    CheckpointError,
    UserError,
    WorkerError,
    environment_failure,
)
from stem_torchrec.launch.versions import version_line
from stem_torchrec.stopping.parent_watch import end_with_parent


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


def _parser() -> CommandParser:
    purpose = (stem_torchrec.__doc__ or "").partition("\n")[0]
    parser = CommandParser("stem-torchrec", description=purpose)
    parser.add_argument("--version", action="version", version=version_line())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_prepare(commands)
    add_train(commands)
    add_replay(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_export(commands)
    add_serve(commands)
    add_plan(commands)
    add_doctor(commands)
    add_compare(commands)
    add_tune(commands)
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
