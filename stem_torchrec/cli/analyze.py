"""``analyze``: what finished runs tell, from options to a written report."""

import argparse
import os
from collections.abc import Sequence
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
    from stem_torchrec.analysis.runs import Run
    from stem_torchrec.training.permutation import Permuted

_MORE = (
    "data.path, distributed.* and eval.* of the runs may be given another value "
    "(--section.key value): where and how they are read"
)


def add_analyze(commands: Commands) -> None:
    """``analyze negative-transfer``, ``preference``, ``gates``, ``collapse``, ``features``."""
    command = commands.add_parser("analyze", help="what finished runs tell of their tasks")
    analyses = command.add_subparsers(required=True, metavar="ANALYSIS")

    text = "gain over single-task models where tasks agree and where they do not"
    command = _add_analysis(analyses, "negative-transfer", text)
    command.add_argument("--buckets", type=int, default=10, metavar="N", help="buckets per task")
    command.add_argument(
        "--comparable",
        type=int,
        default=3,
        metavar="N",
        help="largest distance of buckets at which a sample is comparable",
    )
    command.set_defaults(run=negative_transfer)

    text = "user-item distances where the tasks' preferences contradict each other"
    command = _add_analysis(analyses, "preference", text)
    for side in ("user", "item"):
        command.add_argument(
            f"--{side}-feature",
            metavar="NAME",
            help=f"id feature that stands for the {side} (default: the {side} side's with the "
            "largest table)",
        )
    command.add_argument(
        "--share",
        type=float,
        default=0.4,
        metavar="S",
        help="share of the samples that is near, and that is far",
    )
    command.set_defaults(run=preference)

    text = "what each task's gate reads: mean weight per group of experts"
    command = _add_parser(analyses, "gates", text)
    _add_runs(command, "runs of models with gates; seeds of one model are put together")
    _add_checkpoint(command)
    _add_split(command)
    command.set_defaults(run=gates)

    text = "how many dimensions the embedding tables use: information abundance, effective rank"
    command = _add_parser(analyses, "collapse", text)
    _add_runs(command, "runs to look at; seeds of one model are put together")
    _add_checkpoint(command, every=True)
    command.set_defaults(run=collapse)

    text = "what AUC and NE of each task lose when a feature is permuted over the rows"
    command = _add_parser(analyses, "features", text)
    _add_runs(command, "runs to look at; seeds of one model are put together")
    _add_checkpoint(command)
    _add_split(command)
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
    _check_place(options)
    split, repeats = options.split, options.repeats
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_same_samples(runs, split)
    wanted = None if options.features is None else options.features.split(",")
    names = chosen_features(runs, wanted)

    def features_of(run: "Run") -> "Permuted":
        return features_worker(run.config, split, names, repeats, run.checkpoint)

    found = analyse(by_model(runs), features_of)
    written = report(found, split, repeats, _origin())
    _finish(written, options.out, "features", importance_table(found))


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

    _check_place(options)
    choice = None if every else options.checkpoint
    runs = read_runs("--runs", options.runs, rest, choice)
    check_same_data(runs)
    found = analyse(
        by_model(runs),
        steps_of,
        lambda run, step: tables_worker(run.config, run.schema.sparse, step),
    )
    _finish(report(found, _origin()), options.out, "collapse", collapse_table(found))


def gates(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.gates import analyse, gate_table, report
    from stem_torchrec.analysis.runs import by_model, check_same_samples, read_runs
    from stem_torchrec.cli.workers import gates_worker

    _check_place(options)
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_same_samples(runs, options.split)
    models = by_model(runs)
    found = analyse(models, lambda run: gates_worker(run.config, options.split, run.checkpoint))
    _finish(report(found, options.split, _origin()), options.out, "gates", gate_table(found))


def negative_transfer(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.negative_transfer import analyse
    from stem_torchrec.analysis.negative_transfer_report import gain_table, report
    from stem_torchrec.analysis.runs import by_model
    from stem_torchrec.analysis.subsets import Buckets
    from stem_torchrec.cli.workers import predict_worker

    buckets = Buckets(options.buckets, options.comparable)
    tasks, singles, runs = _read(options, rest)
    models = by_model(runs)
    _check_seeds(singles, runs, tasks)
    predictions = {
        path: predict_worker(run.config, options.split, run.checkpoint)
        for path, run in {run.path: run for run in (*singles, *runs)}.items()
    }
    found = analyse(tasks, options.split, buckets, singles, models, predictions)
    _finish(report(found, _origin()), options.out, "negative_transfer", gain_table(found))


def preference(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.analysis.pairs import check_share
    from stem_torchrec.analysis.preference import Question, analyse, choose_feature
    from stem_torchrec.analysis.preference_report import distance_table, report
    from stem_torchrec.analysis.runs import by_model, sample_ids
    from stem_torchrec.cli.workers import tables_worker

    check_share(options.share)
    tasks, singles, runs = _read(options, rest)
    models = by_model(runs)
    _check_seeds(singles, runs, tasks)
    schema = singles[0].schema
    features = (
        choose_feature(schema, "--user-feature", options.user_feature, "user"),
        choose_feature(schema, "--item-feature", options.item_feature, "item"),
    )
    names = [feature.name for feature in features]
    if names[0] == names[1]:
        raise UserError(f"--item-feature: {names[1]!r} is the user's feature, too")
    ids = sample_ids(singles[0], options.split, names)
    question = Question(
        tasks, options.split, options.share, features, (ids[names[0]], ids[names[1]])
    )
    found = analyse(
        question,
        singles,
        models,
        lambda run: tables_worker(run.config, features, run.checkpoint),
    )
    _finish(report(found, _origin()), options.out, "preference", distance_table(found))


def _add_analysis(analyses: Commands, name: str, text: str) -> CommandParser:
    command = _add_parser(analyses, name, text)
    command.add_argument(
        "--single",
        type=place,
        nargs="+",
        required=True,
        metavar="RUN",
        help="runs of model single_task, or of one task each; one for all seeds or one per seed",
    )
    command.add_argument("--tasks", required=True, metavar="A,B", help="the two tasks")
    _add_runs(command, "runs to compare with them; seeds of one model are put together")
    _add_checkpoint(command)
    _add_split(command)
    return command


def _add_parser(analyses: Commands, name: str, text: str) -> CommandParser:
    return analyses.add_parser(
        name,
        help=text,
        description=text,
        epilog=_MORE,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def _add_runs(command: argparse.ArgumentParser, text: str) -> None:
    """The options of every analysis."""
    command.add_argument("--runs", type=place, nargs="+", required=True, metavar="RUN", help=text)
    command.add_argument(
        "--out", type=local_place, required=True, metavar="DIR", help="report's folder"
    )


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="rows to look at"
    )


def _add_checkpoint(command: argparse.ArgumentParser, every: bool = False) -> None:
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


def _read(
    options: argparse.Namespace, rest: Sequence[str]
) -> tuple[tuple[str, str], list["Run"], list["Run"]]:
    """The two tasks, the single-task runs and the others, all checked."""
    from stem_torchrec.analysis.runs import check_same_samples, check_same_tasks, read_runs
    from stem_torchrec.analysis.single_task import check_single

    _check_place(options)
    tasks = _task_pair(options.tasks)
    singles = read_runs("--single", options.single, rest, options.checkpoint)
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_single(singles, tasks)
    check_same_tasks(runs, tasks)
    check_same_samples([*singles, *runs], options.split)
    return tasks, singles, runs


def _check_place(options: argparse.Namespace) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("analyze: runs in one process; start it without torchrun")
    check_writable("--out", options.out)


def _task_pair(text: str) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or names[0] == names[1] or not all(names):
        raise UserError(f"--tasks: {text!r}; expected two different tasks, as click,like")
    return names[0], names[1]


def _check_seeds(singles: Sequence["Run"], runs: Sequence["Run"], tasks: Sequence[str]) -> None:
    """Refuse a seed without a single-task run before anything is computed."""
    from stem_torchrec.analysis.single_task import single_of

    for run in runs:
        single_of(singles, tasks, run.seed)


def _finish(report: "Report", out: Path, name: str, table: "Table") -> None:
    from stem_torchrec.console import print_report

    make_folder("--out", out)
    written = report.write(out, name)
    print_report(report.title, table, written)


def _origin() -> str:
    from stem_torchrec.runs.folder import installed_versions

    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items())
    return f"stem-torchrec analyze; {versions}"
