"""What every analysis of the command line has: its options, where it may write, its report."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stem_torchrec.cli.options import (
    CommandParser,
    Commands,
    HelpFormatter,
    checkpoint_choice,
    local_place,
    place,
)
from stem_torchrec.errors import UserError
from stem_torchrec.storage.folder_choice import check_writable, make_folder

if TYPE_CHECKING:
    from stem_torchrec.analysis.report import Report, Table

_MORE = (
    "data.path, distributed.* and eval.* of the runs may be given another value "
    "(--section.key value): where and how they are read"
)


def add_parser(analyses: Commands, name: str, text: str) -> CommandParser:
    """A parser with ``text`` as its help, which says what of the runs may be changed."""
    return analyses.add_parser(
        name,
        help=text,
        description=text,
        epilog=_MORE,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def add_runs(command: argparse.ArgumentParser, text: str) -> None:
    """``--runs`` and ``--out``, which every analysis has."""
    command.add_argument("--runs", type=place, nargs="+", required=True, metavar="RUN", help=text)
    command.add_argument(
        "--out", type=local_place, required=True, metavar="DIR", help="report's folder"
    )


def add_split(command: argparse.ArgumentParser) -> None:
    """``--split``, test by default."""
    command.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="rows to look at"
    )


def add_checkpoint(command: argparse.ArgumentParser, every: bool = False) -> None:
    """``--checkpoint``; with ``every`` also ``all``, and ``--checkpoints``."""

    def choice(text: str) -> str | int:
        return text if text == "all" else checkpoint_choice(text)

    command.add_argument(
        "--checkpoint",
        *(["--checkpoints"] if every else []),
        type=choice if every else checkpoint_choice,
        metavar="last|best|STEP|all" if every else "last|best|STEP",
        help="which of each run's checkpoints (default: the one that its test record is of)",
    )


def check_place(options: argparse.Namespace) -> None:
    """Refuse what could not write its report, before anything is computed."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("analyze: runs in one process; start it without torchrun")
    check_writable("--out", options.out)


def finish(report: "Report", out: Path, name: str, table: "Table") -> None:
    """Write the report, and print its table."""
    from stem_torchrec.console import print_report

    make_folder("--out", out)
    written = report.write(out, name)
    print_report(report.title, table, written)


def origin() -> str:
    """What a report was made by."""
    from stem_torchrec.runs.folder import installed_versions

    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    return f"stem-torchrec analyze; {versions}"
