"""``train``: one run, or the rest of one."""

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


def add_train(commands: Commands) -> None:
    command = add_command(commands, "train", "train, evaluate and save one run", config_keys)
    add_start(command)
    command.set_defaults(run=train)


@leaving_at_signals()
def train(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_evaluation, print_note, print_start

    config = load_config(options.config, rest, options=own_options(options))
    print_start("importing torch and TorchRec")
    from stem_torchrec.cli.workers import train_worker
    from stem_torchrec.launch.launcher import run_workers, under_torchrun
    from stem_torchrec.training.checks import check_start

    existing, initial = existing_of(options), initial_of(options)
    num_workers = num_workers_of(options, config)
    if not under_torchrun():
        check_start(config, existing, num_workers, print_start)
        print_start(f"starting {num_workers} ranks")
    outcome = run_workers(
        num_workers, train_worker, config, existing, initial, max_restarts=options.max_restarts
    )
    note_stop(outcome)
    if outcome is None:
        return
    if outcome.stopped is None and outcome.test is not None:
        print_evaluation(outcome.test, outcome.qps)
        if outcome.best == outcome.test["step"]:
            print_note(f"tested is the best checkpoint, of step {outcome.best}")
        elif outcome.best is not None:
            print_note(
                f"tested are the last weights; checkpoint.keep_best keeps step {outcome.best} too"
            )
    if outcome.failure is not None:
        raise outcome.failure
