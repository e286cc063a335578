"""``replay``: judge each day by what was learnt before it, then train on it."""

import argparse
from collections.abc import Sequence

from stem_torchrec.cli.options import Commands, add_command, config_keys, own_options
from stem_torchrec.cli.starting import (
    add_start,
    existing_of,
    initial_of,
    note_stop,
    num_workers_of,
)
from stem_torchrec.config.reading import load_config
from stem_torchrec.stopping.signals import leaving_at_signals


def add_replay(commands: Commands) -> None:
    text = "day after day: judge the weights on a day, train on it once, save"
    command = add_command(commands, "replay", text, config_keys)
    add_start(command)
    command.add_argument(
        "--days",
        metavar="A:B",
        help="first and last day, both included (default: data.days, else all that are there)",
    )
    command.add_argument(
        "--horizon",
        type=int,
        default=1,
        metavar="K",
        help="judge the weights on the K days that come, not on the next one alone",
    )
    command.add_argument(
        "--allow-missing",
        action="store_true",
        help="pass over days of the range that the data does not have",
    )
    command.set_defaults(run=replay)


@leaving_at_signals()
def replay(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_report, print_start

    given = load_config(options.config, rest, options=own_options(options))
    print_start("importing torch and TorchRec")
    from stem_torchrec.analysis.replay import write_report
    from stem_torchrec.cli.workers import replay_worker
    from stem_torchrec.launch.launcher import run_workers, under_torchrun
    from stem_torchrec.training.checks import check_start
    from stem_torchrec.training.replay import replay_of

    config, replayed, notes = replay_of(
        given, options.days, options.horizon, allow_missing=options.allow_missing
    )
    existing, initial = existing_of(options), initial_of(options)
    num_workers = num_workers_of(options, config)
    if not under_torchrun():
        check_start(config, existing, num_workers, print_start, replayed)
        print_start(f"starting {num_workers} ranks")
    outcome = run_workers(
        num_workers,
        replay_worker,
        config,
        replayed,
        existing,
        initial,
        notes,
        max_restarts=options.max_restarts,
    )
    note_stop(outcome)
    if outcome is None:
        return
    table, written = write_report(config)
    print_report("each day by the weights of the days before", table, written)
    if outcome.failure is not None:
        raise outcome.failure
