"""``analyze``: what finished runs tell, from options to a written report."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stem_torchrec.cli.analyze_two_tasks import add_two_task_analyses
from stem_torchrec.cli.analyzing import (
    add_checkpoint,
    add_parser,
    add_runs,
    add_split,
    check_place,
    finish,
    origin,
)
from stem_torchrec.cli.options import Commands
from stem_torchrec.errors import UserError

if TYPE_CHECKING:
    from stem_torchrec.analysis.runs import Run
    from stem_torchrec.training.permutation import Permuted


def add_analyze(commands: Commands) -> None:
    """``analyze negative-transfer``, ``preference``, ``gates``, ``collapse``, ``features``."""
    command = commands.add_parser("analyze", help="what finished runs tell of their tasks")
    analyses = command.add_subparsers(required=True, metavar="ANALYSIS")
    add_two_task_analyses(analyses)

    text = "what each task's gate reads: mean weight per group of experts"
    command = add_parser(analyses, "gates", text)
    add_runs(command, "runs of models with gates; seeds of one model are put together")
    add_checkpoint(command)
    add_split(command)
    command.set_defaults(run=gates)

    text = "how many dimensions the embedding tables use: information abundance, effective rank"
    command = add_parser(analyses, "collapse", text)
    add_runs(command, "runs to look at; seeds of one model are put together")
    add_checkpoint(command, every=True)
    command.set_defaults(run=collapse)

    text = "what AUC and NE of each task lose when a feature is permuted over the rows"
    command = add_parser(analyses, "features", text)
    add_runs(command, "runs to look at; seeds of one model are put together")
    add_checkpoint(command)
    add_split(command)
    command.add_argument(
        "--features", metavar="A,B", help="features to permute, one at a time (default: all)"
    )
    command.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="permutations of each feature"
    )
    command.set_defaults(run=features)


def features(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.features import analyse, chosen_features, importance_table, report
    from stem_torchrec.analysis.runs import by_model, check_same_samples, read_runs
    from stem_torchrec.cli.workers import features_worker

    if options.repeats < 1:
        raise UserError(f"--repeats: {options.repeats}; allowed: at least 1")
    check_place(options)
    split, repeats = options.split, options.repeats
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_same_samples(runs, split)
    wanted = None if options.features is None else options.features.split(",")
    names = chosen_features(runs, wanted)

    def features_of(run: "Run") -> "Permuted":
        return features_worker(run.config, split, names, repeats, run.checkpoint)

    found = analyse(by_model(runs), features_of)
    written = report(found, split, repeats, origin())
    finish(written, options.out, "features", importance_table(found))


def collapse(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec import checkpoint
    from stem_torchrec.analysis.collapse import analyse, collapse_table, report
    from stem_torchrec.analysis.runs import by_model, check_same_data, read_runs
    from stem_torchrec.cli.workers import tables_worker

    every = options.checkpoint == "all"

    def steps_of(run: "Run") -> list[int]:
        if every:
            return checkpoint.saved_steps(run.path / checkpoint.FOLDER)
        return [checkpoint.chosen_step(run.path, run.checkpoint)]

    check_place(options)
    choice = None if every else options.checkpoint
    runs = read_runs("--runs", options.runs, rest, choice)
    check_same_data(runs)
    found = analyse(
        by_model(runs),
        steps_of,
        lambda run, step: tables_worker(run.config, run.schema.sparse, step),
    )
    finish(report(found, origin()), options.out, "collapse", collapse_table(found))


def gates(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.gates import analyse, gate_table, report
    from stem_torchrec.analysis.runs import by_model, check_same_samples, read_runs
    from stem_torchrec.cli.workers import gates_worker

    check_place(options)
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_same_samples(runs, options.split)
    models = by_model(runs)
    found = analyse(models, lambda run: gates_worker(run.config, options.split, run.checkpoint))
    finish(report(found, options.split, origin()), options.out, "gates", gate_table(found))
