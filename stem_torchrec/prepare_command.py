"""``prepare csv | tiktok | qk-video``, for ``cli.py``: raw files of one table -> prepared folder.

Heavy imports stand inside the commands, so that ``--help`` and mistakes answer at once.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stem_torchrec.place import place_of
from stem_torchrec.settings import all_keys, load_file, load_options
from stem_torchrec.stopping import stoppable

if TYPE_CHECKING:
    from stem_torchrec.data.describe import Description
    from stem_torchrec.data.prepare_files import PrepareOptions

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
AddCommand = Callable[..., argparse.ArgumentParser]


def add_prepare_files(
    sources: Commands, add: AddCommand, add_out: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the sources; ``add(commands, name, text, more)`` makes a parser, ``add_out`` gives it
    ``--out`` and ``--overwrite``."""
    from stem_torchrec.data.prepare_files import PrepareOptions, PublicSetOptions

    text = "delimited or Parquet files, described by a YAML file"
    command = add(sources, "csv", text, _help(PrepareOptions))
    command.add_argument("--source", nargs="+", required=True, metavar="FILE", help="or patterns")
    command.add_argument("--describe", type=Path, required=True, metavar="FILE")
    command.set_defaults(run=prepare_csv)
    add_out(command)
    add_fresh(command)
    for name, text, run in (
        ("tiktok", "final_track1_train.txt of the ICME 2019 challenge", prepare_tiktok),
        ("qk-video", "QK-video.csv of Tenrec", prepare_qk_video),
    ):
        command = add(sources, name, text, _help(PublicSetOptions))
        command.add_argument("--source", nargs="+", required=True, metavar="FILE")
        command.set_defaults(run=run)
        add_out(command)
        add_fresh(command)


def add_fresh(command: argparse.ArgumentParser) -> None:
    text = "start anew, without what an interrupted run has left"
    command.add_argument("--fresh", action="store_true", help=text)


@stoppable
def prepare_csv(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.data.describe import Description
    from stem_torchrec.data.prepare_files import PrepareOptions

    how = load_options(PrepareOptions, rest)
    _prepare(options, load_file(Description, options.describe, "--describe"), how)


@stoppable
def prepare_tiktok(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.data.prepare_files import PublicSetOptions
    from stem_torchrec.data.tiktok import describe_tiktok

    how = load_options(PublicSetOptions, rest)
    _prepare(options, describe_tiktok(seed=how.seed, min_count=how.min_count), how)


@stoppable
def prepare_qk_video(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.data.prepare_files import PublicSetOptions
    from stem_torchrec.data.qk_video import describe_qk_video

    how = load_options(PublicSetOptions, rest)
    _prepare(options, describe_qk_video(seed=how.seed, min_count=how.min_count), how)


def _prepare(
    options: argparse.Namespace, description: "Description", how: "PrepareOptions"
) -> None:
    from stem_torchrec.console import StageConsole, print_stats
    from stem_torchrec.data.prepare_files import prepare_files
    from stem_torchrec.data.transfer import local_target

    with ExitStack() as open_places:
        out = open_places.enter_context(local_target(options.out, overwrite=options.overwrite))
        stats = prepare_files(
            [open_places.enter_context(_local(source)) for source in options.source],
            description,
            out,
            options=how,
            overwrite=options.overwrite,
            fresh=options.fresh,
            watcher=StageConsole(),
        )
    print_stats(stats, str(options.out))


@contextmanager
def _local(source: str) -> Iterator[str]:
    """A file or pattern as a local one; what lies in a store is fetched first."""
    from stem_torchrec.data.transfer import local_source

    place = place_of(source)
    if isinstance(place, Path):
        yield str(place)
    elif set(place.name) & set("*?["):
        with local_source(place.parent, [place.name]) as folder:
            yield str(folder / place.name)
    else:
        with local_source(place) as file:
            yield str(file)


def _help(model: type["PrepareOptions"]) -> str:
    lines = ["options (--key value):"]
    for key in all_keys(model):
        lines.append(f"  --{key.name} (default: {key.default_text})")
        lines.append(f"      {key.description}; {key.allowed}")
    return "\n".join(lines)
