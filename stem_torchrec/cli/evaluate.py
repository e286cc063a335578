"""``evaluate``: metrics of a split from a finished run's checkpoint."""

import argparse
import json
from collections.abc import Sequence

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_run,
    config_keys,
    own_options,
    positive,
)
from stem_torchrec.errors import WorkerError


def add_evaluate(commands: Commands) -> None:
    text = "metrics of a split from a run's checkpoint"
    command = add_command(commands, "evaluate", text, config_keys)
    add_run(command)
    command.add_argument(
        "--split", choices=("train", "valid", "test"), default="test", help="rows to evaluate"
    )
    command.add_argument(
        "--nproc", type=positive, metavar="N", help="local workers (default: as in train)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=evaluate)


def evaluate(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_evaluation, print_start

    print_start("importing torch and TorchRec")
    from stem_torchrec.cli.workers import evaluate_worker
    from stem_torchrec.distributed.ranks import check_devices, device_type
    from stem_torchrec.launch.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.runs.folder import load_run_config, require_run
    from stem_torchrec.training.checks import check_inputs

    require_run("--run", options.run_dir)
    config = load_run_config("--run", options.run_dir, rest, own_options(options))
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_devices(config.distributed, num_workers)
        check_inputs(config, splits=[options.split], of_run=True)
        print_start(f"loading the checkpoint, evaluating {options.split}")
    record = run_workers(num_workers, evaluate_worker, config, options.split, options.checkpoint)
    if record is None and not under_torchrun():
        raise WorkerError("ended by a signal")
    if record is None:
        return
    if options.json:
        print(json.dumps(record))
    else:
        print_evaluation(record)
