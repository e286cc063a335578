"""The command ``doctor``."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def add_doctor(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    keys = "config keys that it reads: --run.dir DIR, --distributed.device auto|cpu|cuda"
    command = add(
        commands, "doctor", "whether this machine can train: each line ok or why not", keys
    )
    command.add_argument("--nproc", type=int, metavar="N", default=None, help="local workers")
    command.add_argument("--run.dir", type=Path, default=None, metavar="DIR", dest="run_dir")
    command.set_defaults(run=doctor)


def doctor(options: argparse.Namespace, rest: Sequence[str]) -> None:
    raise NotImplementedError
