"""The commands; together with ``console.py`` the only place that prints for people.

Heavy imports stand inside the commands, so that ``--help`` and mistakes answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stem_torchrec.analysis.analyze_command import add_analyze
from stem_torchrec.analysis.compare.command import add_compare
from stem_torchrec.config import Config
from stem_torchrec.doctor_command import add_doctor
from stem_torchrec.errors import UserError, WorkerError
from stem_torchrec.place import Place, place_of
from stem_torchrec.prepare_command import add_prepare_files
from stem_torchrec.settings import Key, all_keys, load_config, load_options

if TYPE_CHECKING:
    from stem_torchrec.checkpoint import Initial


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 a mistake of the user (one message), 1 anything else."""
    options, rest = _parser().parse_known_args(arguments)
    try:
        _refuse_check_of_source(options)
        code = options.run(options, rest)
    except UserError as error:
        if not _left_to_torchrun(error):
            print(f"error: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        _left_to_torchrun(error)
        raise
    return code or 0


def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.checks import check_inputs
    from stem_torchrec.console import print_evaluation, print_note
    from stem_torchrec.distributed.ranks import check_devices, device_type
    from stem_torchrec.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.run_folder import Existing, check_run
    from stem_torchrec.workers import train_worker

    config = load_config(options.config, rest)
    existing: Existing = (
        "resume" if options.resume else "overwrite" if options.overwrite else "refuse"
    )
    initial = _initial(options)
    if initial is not None and existing == "resume":
        raise UserError("--init-from: starts a run; with --resume it goes on with its own weights")
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_devices(config.distributed, num_workers)
        check_run(config, existing)
        check_inputs(config)
    outcome = run_workers(
        num_workers, train_worker, config, existing, initial, max_restarts=options.max_restarts
    )
    if outcome is None:
        return
    if outcome.stopped is not None:
        print_note(f"stopped by a signal after step {outcome.stopped}; --resume goes on from there")
    elif outcome.test is not None:
        print_evaluation(outcome.test, outcome.qps)


def _initial(options: argparse.Namespace) -> "Initial | None":
    from stem_torchrec.checkpoint import Initial
    from stem_torchrec.run_folder import require_run

    if options.init_from is None:
        if options.init_map:
            raise UserError("--init-map: has no meaning without --init-from")
        return None
    require_run("--init-from", options.init_from)
    return Initial(options.init_from, tuple(options.init_map), options.init_new_tasks)


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.checks import check_inputs
    from stem_torchrec.console import print_evaluation
    from stem_torchrec.distributed.ranks import check_devices, device_type
    from stem_torchrec.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.run_folder import require_run
    from stem_torchrec.workers import evaluate_worker

    require_run("--run", options.run_dir)
    overrides = ["--run.dir", str(options.run_dir), *rest]
    config = load_config(options.run_dir / "config.yaml", overrides)
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_devices(config.distributed, num_workers)
        check_inputs(config, splits=[options.split])
    record = run_workers(num_workers, evaluate_worker, config, options.split)
    if record is None and not under_torchrun():
        raise WorkerError("ended by a signal")
    if record is None:
        return
    if options.json:
        print(json.dumps(record))
    else:
        print_evaluation(record)


def plan(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.checks import plan_offline
    from stem_torchrec.distributed.plan import World
    from stem_torchrec.notices import hide_dependency_notices

    hide_dependency_notices()
    config = load_config(options.config, rest)
    per_node = config.distributed.ranks_per_node or min(options.world_size, 8)
    print(plan_offline(config, World(options.world_size, per_node, options.device)), end="")


def prepare_synthetic(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_stats
    from stem_torchrec.data.synthetic import SyntheticConfig, prepare_synthetic
    from stem_torchrec.data.transfer import local_target

    config = load_options(SyntheticConfig, rest)
    with local_target(options.out, overwrite=options.overwrite) as out:
        stats = prepare_synthetic(config, out, overwrite=options.overwrite)
    print_stats(stats, str(options.out))


def prepare_kuairand(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_stats
    from stem_torchrec.data.kuairand import KuaiRandConfig, prepare_kuairand
    from stem_torchrec.data.kuairand_source import patterns
    from stem_torchrec.data.transfer import local_source, local_target

    config = load_options(KuaiRandConfig, rest)
    wanted = patterns(include_random=config.include_random)
    with (
        local_target(options.out, overwrite=options.overwrite) as out,
        local_source(options.source, wanted) as source,
    ):
        stats = prepare_kuairand(source, out, config=config, overwrite=options.overwrite)
    print_stats(stats, str(options.out))


def check_prepared(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_check
    from stem_torchrec.data.check import check_folder

    if options.check is None:
        raise UserError("prepare: expected a source, or --check DIR; see prepare --help")
    if rest:
        raise UserError(f"prepare --check: unexpected argument {rest[0]!r}")
    checked = check_folder(options.check)
    if checked.faults:
        faults = "\n".join(f"  {fault}" for fault in checked.faults)
        raise UserError(f"{options.check}: faults found: {len(checked.faults)}\n{faults}")
    print_check(checked, str(options.check))


def _left_to_torchrun(error: Exception) -> bool:
    """Hand a rank's error to torchrun, which reports the first of all ranks' once."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)
    return True


def _refuse_check_of_source(options: argparse.Namespace) -> None:
    if getattr(options, "check", None) is not None and options.source_kind is not None:
        raise UserError(f"prepare: --check takes no source, found {options.source_kind!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("stem-torchrec", description=__import__(__package__).__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    config_keys = _key_help("config keys", "--section.key value", all_keys(Config))

    prepare = commands.add_parser("prepare", help="raw data -> prepared Parquet folder")
    prepare.add_argument("--check", type=_place, metavar="DIR", help="verify a prepared folder")
    prepare.set_defaults(run=check_prepared, source_kind=None)
    sources = prepare.add_subparsers(metavar="SOURCE", dest="source_kind")
    _add_prepare_commands(sources)

    command = _add(commands, "train", "train, evaluate and save one run", config_keys)
    command.add_argument("--config", type=Path, required=True, metavar="FILE")
    command.add_argument(
        "--nproc",
        type=_positive,
        metavar="N",
        help="local workers (default: 1 "
        "on CPU, one per GPU); torchrun's ranks where it started this",
    )
    command.add_argument(
        "--max-restarts",
        type=_at_least_zero,
        default=0,
        metavar="K",
        help="start the local workers again up to K times when one is lost; they go on from the "
        "newest checkpoint (default: 0; torchrun has an option of its own)",
    )
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    existing.add_argument("--overwrite", action="store_true", help="replace the folder's run")
    initial = command.add_argument_group("weights of another run")
    initial.add_argument(
        "--init-from",
        type=_place,
        metavar="RUN",
        help="start with the tables and dense weights of another run's newest checkpoint, by name",
    )
    initial.add_argument(
        "--init-map",
        type=_renaming,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a task, feature or other part of a name there, and what it is here; repeatable",
    )
    initial.add_argument(
        "--init-new-tasks",
        choices=("shared", "fresh"),
        default="shared",
        help="what the tables of a task that is not there start from (default: shared)",
    )
    command.set_defaults(run=train)

    command = _add(commands, "evaluate", "metrics of a split from a run's checkpoint", config_keys)
    command.add_argument("--run", type=_place, required=True, metavar="DIR", dest="run_dir")
    command.add_argument("--split", choices=("train", "valid", "test"), default="test")
    command.add_argument("--nproc", type=_positive, metavar="N", help="local workers")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=evaluate)

    command = _add(commands, "plan", "print the sharding plan; needs no GPU", config_keys)
    command.add_argument("--config", type=Path, required=True, metavar="FILE")
    command.add_argument("--world-size", type=_positive, default=1, metavar="N")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    command.set_defaults(run=plan)

    add_doctor(commands, _add)

    add_compare(commands, _add, config_keys)
    add_analyze(commands)
    return parser


def _add_prepare_commands(sources: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from stem_torchrec.data.kuairand import KuaiRandConfig
    from stem_torchrec.data.synthetic_config import SyntheticConfig

    keys = _key_help("options", "--key value", all_keys(SyntheticConfig))
    command = _add(sources, "synthetic", "seeded data with planted conflicts between tasks", keys)
    command.set_defaults(run=prepare_synthetic)
    _add_out(command)

    keys = _key_help("options", "--key value", all_keys(KuaiRandConfig))
    command = _add(sources, "kuairand", "a KuaiRand release, or files in its format", keys)
    command.add_argument("--source", type=_place, required=True, metavar="DIR")
    command.set_defaults(run=prepare_kuairand)
    _add_out(command)

    add_prepare_files(sources, _add, _add_out)


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, more: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=_place, required=True, metavar="DIR")
    command.add_argument("--overwrite", action="store_true", help="replace the folder")


def _key_help(title: str, form: str, keys: Iterable[Key]) -> str:
    lines = [f"{title} ({form}):"]
    for key in keys:
        lines.append(f"  --{key.name} (default: {key.default_text})")
        lines.append(f"      {key.description}; {key.allowed}")
    return "\n".join(lines)


def _place(text: str) -> Place:
    try:
        return place_of(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least_zero(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new
