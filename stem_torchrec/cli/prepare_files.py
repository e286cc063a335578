"""``prepare csv | tiktok | qk-video``: raw files of one table -> prepared folder."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stem_torchrec.cli.options import Commands, add_command, day, option_keys
from stem_torchrec.cli.preparing import add_target, prepare_into, stoppable_preparation
from stem_torchrec.config.reading import load_file, load_options
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import place_of

if TYPE_CHECKING:
    from stem_torchrec.prepare.engine.options import PrepareOptions
    from stem_torchrec.prepare.tables.describe import Description


def add_prepare_files(sources: Commands) -> None:
    """Add the sources."""
    from stem_torchrec.prepare.engine.options import (
        PrepareOptions,
        PublicSetOptions,
        TikTokOptions,
    )

    text = "delimited or Parquet files, described by a YAML file"
    command = add_command(sources, "csv", text, option_keys(PrepareOptions))
    _add_files(command, extendable=True)
    text = "YAML file about the raw files; with --extend that of the first day by default"
    command.add_argument("--describe", type=Path, metavar="FILE", help=text)
    text = "day of all rows (split: {by: day} without a column), e.g. 2022-04-08"
    command.add_argument("--day", type=day, metavar="DAY", help=text)
    text = "with --extend: give no value a new id"
    command.add_argument("--frozen", action="store_true", help=text)
    command.set_defaults(run=prepare_csv)
    for name, text, run, keys in (
        (
            "tiktok",
            "final_track1_train.txt of the ICME 2019 challenge",
            prepare_tiktok,
            TikTokOptions,
        ),
        ("qk-video", "QK-video.csv of Tenrec", prepare_qk_video, PublicSetOptions),
    ):
        command = add_command(sources, name, text, option_keys(keys))
        _add_files(command)
        command.set_defaults(run=run)


def _add_files(command: argparse.ArgumentParser, *, extendable: bool = False) -> None:
    command.add_argument(
        "--source", nargs="+", required=True, metavar="FILE", help="raw files, folders, or patterns"
    )
    add_target(command, restartable=True, extendable=extendable)


@stoppable_preparation
def prepare_csv(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.prepare.engine.options import PrepareOptions
    from stem_torchrec.prepare.tables.describe import Description

    how = load_options(PrepareOptions, rest)
    described = options.describe
    description = None if described is None else load_file(Description, described, "--describe")
    if options.extend is not None:
        _extend(options, description, how)
        return
    if description is None:
        raise UserError("--describe: needed; with --extend alone it may be left out")
    if options.frozen:
        raise UserError("--frozen: only with --extend: a new folder has no vocabularies")
    _prepare(options, description, how)


@stoppable_preparation
def prepare_tiktok(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.prepare.engine.options import TikTokOptions
    from stem_torchrec.prepare.tables.public_sets import describe_tiktok

    how = load_options(TikTokOptions, rest)
    description = describe_tiktok(seed=how.seed, min_count=how.min_count, fields=how.fields)
    _prepare(options, description, how)


@stoppable_preparation
def prepare_qk_video(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.prepare.engine.options import PublicSetOptions
    from stem_torchrec.prepare.tables.public_sets import describe_qk_video

    how = load_options(PublicSetOptions, rest)
    _prepare(options, describe_qk_video(seed=how.seed, min_count=how.min_count), how)


def _prepare(
    options: argparse.Namespace, description: "Description", how: "PrepareOptions"
) -> None:
    from stem_torchrec.console import StageConsole
    from stem_torchrec.prepare.tables.prepare_files import prepare_files

    def prepare(out: Path) -> dict[str, Any]:
        with _local_sources(options) as sources:
            return prepare_files(
                sources,
                description,
                out,
                options=how,
                overwrite=options.overwrite,
                fresh=options.fresh,
                watcher=StageConsole(),
                day=getattr(options, "day", None),
            )

    prepare_into(options, prepare)


def _extend(
    options: argparse.Namespace, description: "Description | None", how: "PrepareOptions"
) -> None:
    from stem_torchrec.console import StageConsole, print_stats
    from stem_torchrec.prepare.tables.prepare_files import extend_files

    if options.overwrite:
        raise UserError("--overwrite: not with --extend, which keeps what is in the folder")
    options.out = options.extend  # for what is said of the folder where a signal ends the command
    with _local_sources(options) as sources:
        stats = extend_files(
            sources,
            options.extend,
            description,
            options=how,
            fresh=options.fresh,
            watcher=StageConsole(),
            day=options.day,
            frozen=options.frozen,
        )
    print_stats(stats, str(options.extend))


@contextmanager
def _local_sources(options: argparse.Namespace) -> Iterator[list[str]]:
    with ExitStack() as sources:
        yield [sources.enter_context(_local(source)) for source in options.source]


@contextmanager
def _local(source: str) -> Iterator[str]:
    """A file or pattern as a local one; what lies in a store is fetched first."""
    from stem_torchrec.prepare.engine.transfer import local_source

    place = place_of(source)
    if isinstance(place, Path):
        yield str(place)
    elif set(place.name) & set("*?["):
        with local_source(place.parent, [place.name]) as folder:
            yield str(folder / place.name)
    else:
        with local_source(place) as file:
            yield str(file)
