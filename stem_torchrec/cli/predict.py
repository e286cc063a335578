"""``predict``: a run's probabilities for prepared or raw rows, as Parquet files."""

import argparse
from collections.abc import Sequence

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_run,
    config_keys,
    local_place,
    own_options,
    positive,
)
from stem_torchrec.errors import WorkerError


def add_predict(commands: Commands) -> None:
    text = "probabilities for the rows of prepared or raw files, as Parquet"
    command = add_command(commands, "predict", text, config_keys)
    add_run(command)
    command.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FOLDER|FILE",
        help="a prepared folder, or raw files as those that were prepared",
    )
    command.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        default="test",
        help="which rows of a prepared folder",
    )
    command.add_argument(
        "--out",
        type=local_place,
        required=True,
        metavar="DIR",
        help="folder of the predictions; what an interruption has left there is gone on with",
    )
    command.add_argument(
        "--keep", nargs="+", default=[], metavar="COLUMN", help="input columns to pass through"
    )
    command.add_argument(
        "--nproc", type=positive, metavar="N", help="local workers (default: as in train)"
    )
    command.set_defaults(run=predict)


def predict(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_note, print_start

    print_start("importing torch and TorchRec")
    from stem_torchrec.cli.serving_workers import predict_files_worker
    from stem_torchrec.distributed.ranks import check_devices, device_type
    from stem_torchrec.launch.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.runs.folder import load_run_config, require_run
    from stem_torchrec.serving.request import PredictionRequest

    require_run("--run", options.run_dir)
    config = load_run_config("--run", options.run_dir, rest, own_options(options))
    wanted = PredictionRequest(tuple(options.data), options.split, tuple(options.keep))
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_devices(config.distributed, num_workers)
        wanted.files(config, wanted.schema(config))
        print_start("loading the checkpoint")
    worker = (config, options.checkpoint, wanted, options.out)
    rows = run_workers(num_workers, predict_files_worker, *worker)
    if rows is None and not under_torchrun():
        raise WorkerError("ended by a signal")
    if rows is not None:
        print_note(f"{rows:,} rows predicted in {options.out}")
