"""``doctor``: whether this machine can train."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from stem_torchrec.cli.options import Commands, add_command, place
from stem_torchrec.errors import UserError


def add_doctor(commands: Commands) -> None:
    text = "whether this machine can train: a line per check, ok or what to do"
    command = add_command(commands, "doctor", text, "exit code 0 if every check is ok, else 1")
    command.add_argument("--nproc", type=int, metavar="N", help="local workers (default: 2 on CPU)")
    command.add_argument(
        "--run.dir",
        type=place,
        metavar="DIR",
        dest="run_dir",
        default=Path("runs"),
        help="run folder whose disk is tried",
    )
    command.add_argument(
        "--distributed.device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        dest="device",
        help="device of the ranks",
    )
    command.set_defaults(run=doctor)


def doctor(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from stem_torchrec.console import print_finding
    from stem_torchrec.training.doctor import Problem, checks

    if rest:
        raise UserError(f"doctor: unknown argument {rest[0]!r}")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError("doctor starts its workers itself: not under torchrun")
    if options.nproc is not None and options.nproc < 1:
        raise UserError(f"--nproc: {options.nproc} is not at least 1")
    healthy = True
    for check in checks(options.device, options.nproc, options.run_dir):
        try:
            print_finding(check.name, check.run(), ok=True)
        except Problem as problem:
            healthy = False
            print_finding(check.name, str(problem), ok=False)
            if check.needed:
                break
    return 0 if healthy else 1
