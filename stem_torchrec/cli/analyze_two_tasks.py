"""``analyze negative-transfer`` and ``preference``: two tasks, beside their single-task runs."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stem_torchrec.cli.analyzing import (
    add_checkpoint,
    add_parser,
    add_runs,
    add_split,
    check_place,
    finish,
    origin,
)
from stem_torchrec.cli.options import CommandParser, Commands, place
from stem_torchrec.errors import UserError

if TYPE_CHECKING:
    from stem_torchrec.analysis.runs import Run


def add_two_task_analyses(analyses: Commands) -> None:
    """``negative-transfer`` and ``preference``."""
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
    finish(report(found, origin()), options.out, "negative_transfer", gain_table(found))


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
    finish(report(found, origin()), options.out, "preference", distance_table(found))


def _add_analysis(analyses: Commands, name: str, text: str) -> CommandParser:
    command = add_parser(analyses, name, text)
    command.add_argument(
        "--single",
        type=place,
        nargs="+",
        required=True,
        metavar="RUN",
        help="runs of model single_task, or of one task each; one for all seeds or one per seed",
    )
    command.add_argument("--tasks", required=True, metavar="A,B", help="the two tasks")
    add_runs(command, "runs to compare with them; seeds of one model are put together")
    add_checkpoint(command)
    add_split(command)
    return command


def _read(
    options: argparse.Namespace, rest: Sequence[str]
) -> tuple[tuple[str, str], list["Run"], list["Run"]]:
    """The two tasks, the single-task runs and the others, all checked."""
    from stem_torchrec.analysis.runs import check_same_samples, check_same_tasks, read_runs
    from stem_torchrec.analysis.single_task import check_single

    check_place(options)
    tasks = _task_pair(options.tasks)
    singles = read_runs("--single", options.single, rest, options.checkpoint)
    runs = read_runs("--runs", options.runs, rest, options.checkpoint)
    check_single(singles, tasks)
    check_same_tasks(runs, tasks)
    check_same_samples([*singles, *runs], options.split)
    return tasks, singles, runs


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
