"""``prepare SOURCE``: raw data -> prepared folder; ``prepare --check DIR``: is one in order."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stem_torchrec.cli.options import Commands, HelpFormatter, add_command, option_keys, place
from stem_torchrec.cli.prepare_files import add_prepare_files
from stem_torchrec.cli.preparing import add_target, prepare_into, stoppable_preparation
from stem_torchrec.config.reading import load_options
from stem_torchrec.errors import UserError


def add_prepare(commands: Commands) -> None:
    from stem_torchrec.prepare.engine.options import KuaiRandConfig
    from stem_torchrec.prepare.synthetic.config import SyntheticConfig

    text = "raw data -> prepared Parquet folder"
    prepare = commands.add_parser("prepare", help=text, formatter_class=HelpFormatter)
    prepare.add_argument("--check", type=place, metavar="DIR", help="verify a prepared folder")
    prepare.set_defaults(run=check_prepared, source_kind=None)
    sources = prepare.add_subparsers(metavar="SOURCE", dest="source_kind")

    text = "seeded data with planted conflicts between tasks"
    command = add_command(sources, "synthetic", text, option_keys(SyntheticConfig))
    command.set_defaults(run=prepare_synthetic)
    add_target(command, restartable=False)

    text = "a KuaiRand release, or files in its format"
    kuairand = add_command(sources, "kuairand", text, option_keys(KuaiRandConfig))
    kuairand.add_argument(
        "--source", type=place, required=True, metavar="DIR", help="folder of the release"
    )
    kuairand.set_defaults(run=prepare_kuairand)

    add_target(kuairand, restartable=True)
    add_prepare_files(sources)


@stoppable_preparation
def prepare_synthetic(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

    config = load_options(SyntheticConfig, rest)
    prepare_into(options, lambda out: prepare_synthetic(config, out, overwrite=options.overwrite))


@stoppable_preparation
def prepare_kuairand(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import StageConsole
    from stem_torchrec.prepare.engine.options import KuaiRandConfig
    from stem_torchrec.prepare.engine.transfer import local_source
    from stem_torchrec.prepare.kuairand.prepare import prepare_kuairand
    from stem_torchrec.prepare.kuairand.source import patterns

    config = load_options(KuaiRandConfig, rest)
    wanted = patterns(include_random=config.include_random)

    def prepare(out: Path) -> dict[str, Any]:
        with local_source(options.source, wanted) as source:
            return prepare_kuairand(
                source,
                out,
                config=config,
                overwrite=options.overwrite,
                fresh=options.fresh,
                watcher=StageConsole(),
            )

    prepare_into(options, prepare)


def check_prepared(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import StageConsole, print_check
    from stem_torchrec.prepare.check import check_folder

    if options.check is None:
        raise UserError("prepare: expected a source, or --check DIR; see prepare --help")
    if rest:
        raise UserError(f"prepare --check: unexpected argument {rest[0]!r}")
    checked = check_folder(options.check, StageConsole(in_logs=False))
    if checked.faults:
        faults = "\n".join(f"  {fault}" for fault in checked.faults)
        raise UserError(f"{options.check}: faults found: {len(checked.faults)}\n{faults}")
    print_check(checked, str(options.check))


def refuse_check_of_source(options: argparse.Namespace) -> None:
    """Raise UserError if ``--check`` and a source are both given."""
    if getattr(options, "check", None) is not None and options.source_kind is not None:
        raise UserError(f"prepare: --check takes no source, found {options.source_kind!r}")
