"""``compare``: models and balancing rules side by side."""

import argparse
import shlex
from collections.abc import Sequence

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_config,
    config_keys,
    local_place,
)


def add_compare(commands: Commands) -> None:
    text = "train models and balancing rules over seeds, and report on them side by side"
    command = add_command(commands, "compare", text, config_keys)
    add_config(command)
    command.add_argument(
        "--models", type=_names, required=True, metavar="a,b,c", help="values of model.name"
    )
    command.add_argument(
        "--balance",
        type=_names,
        metavar="a,b,c",
        help="values of balance.rule (default: the config's)",
    )
    command.add_argument(
        "--seeds",
        type=int,
        default=3,
        metavar="N",
        help="runs of each combination, with seeds from run.seed on",
    )
    command.add_argument(
        "--out", type=local_place, required=True, metavar="DIR", help="runs and report"
    )
    command.add_argument(
        "--vary",
        nargs="+",
        action="extend",
        default=[],
        metavar="section.key=v1;v2",
        help="compare values of other config keys too; several keys are combined",
    )
    command.add_argument(
        "--own",
        nargs="+",
        action="extend",
        default=[],
        metavar="MODEL:section.key=value",
        help="a setting for one model's runs",
    )
    command.add_argument(
        "--nproc", type=int, metavar="N", help="ranks of each run (default: as in train)"
    )
    command.add_argument(
        "--parallel",
        type=int,
        default=1,
        metavar="P",
        help="runs at a time; samples/s is comparable with 1 only",
    )
    command.add_argument(
        "--replay",
        metavar="A:B",
        help="go through these days of the train split as replay does, and compare on them",
    )
    command.add_argument(
        "--overwrite", action="store_true", help="run everything anew, what is finished too"
    )
    command.set_defaults(run=compare)


def compare(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.compare import comparison
    from stem_torchrec.analysis.compare.plan import Request
    from stem_torchrec.analysis.compare.tables import overview
    from stem_torchrec.console import StageConsole, print_note, print_report
    from stem_torchrec.errors import WorkerError
    from stem_torchrec.launch.notices import hide_dependency_notices

    hide_dependency_notices()
    request = Request(
        config=options.config,
        models=options.models,
        rules=options.balance,
        seeds=options.seeds,
        out=options.out,
        vary=options.vary,
        own=options.own,
        nproc=options.nproc,
        parallel=options.parallel,
        overwrite=options.overwrite,
        overrides=rest,
        days=options.replay,
    )
    console = StageConsole()
    try:
        command = _command(options, rest)
        found = comparison.compare(request, command, console.note, console.watch)
    except KeyboardInterrupt:
        print_note("interrupted; the same command goes on where this one stopped")
        raise SystemExit(130) from None
    table = overview(found.rows, request.seeds)
    split = "test split" if options.replay is None else f"days {options.replay}"
    print_report(f"{split}, mean ± std over seeds", table, found.written[:3])
    if found.failures:
        names = "; ".join(f"{f.run.label}: {f.failure}" for f in found.failures)
        raise WorkerError(f"{len(found.failures)} of the runs failed: {names}")


def _command(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """The command line again."""
    words = ["stem-torchrec", "compare", "--config", str(options.config)]
    words += ["--models", ",".join(options.models), "--seeds", str(options.seeds)]
    words += ["--balance", ",".join(options.balance)] if options.balance else []
    words += ["--vary", *options.vary] if options.vary else []
    words += ["--own", *options.own] if options.own else []
    words += ["--replay", options.replay] if options.replay else []
    words += ["--nproc", str(options.nproc)] if options.nproc else []
    words += ["--parallel", str(options.parallel), "--out", str(options.out), *rest]
    return shlex.join(words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))
