"""``export``: a run as a folder that predicts without TorchRec; or its embeddings as Parquet."""

import argparse
import re
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
from stem_torchrec.errors import UserError, WorkerError, shown

_PRECISIONS = ("fp32", "fp16", "int8")


def add_export(commands: Commands) -> None:
    text = "a run as a folder that predicts without TorchRec, or its embeddings as Parquet"
    command = add_command(commands, "export", text, config_keys)
    add_run(command)
    command.add_argument(
        "--out", type=local_place, required=True, metavar="DIR", help="folder of the export"
    )
    command.add_argument(
        "--tables", choices=_PRECISIONS, default="fp32", help="precision of the tables"
    )
    command.add_argument(
        "--name", metavar="NAME", help="of the model, for servers (default: the run folder's name)"
    )
    command.add_argument(
        "--embeddings",
        type=_names,
        metavar="FEATURES",
        help="instead: write the vectors of these features, with commas between, as Parquet",
    )
    command.add_argument(
        "--owner", default="shared", metavar="shared|TASK|all", help="whose vectors"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an export")
    command.add_argument(
        "--nproc", type=positive, metavar="N", help="local workers (default: as in train)"
    )
    command.set_defaults(run=export)


def export(options: argparse.Namespace, rest: Sequence[str]) -> None:
    if options.embeddings:
        _export_embeddings(options, rest)
    else:
        _export_model(options, rest)


def _export_embeddings(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_note, print_start

    print_start("importing torch and TorchRec")
    from stem_torchrec.checkpoint import chosen_step
    from stem_torchrec.runs.folder import load_run_config, require_run
    from stem_torchrec.serving.embeddings import write_embeddings
    from stem_torchrec.training.run import Run

    require_run("--run", options.run_dir)
    config = load_run_config("--run", options.run_dir, rest, own_options(options))
    run = Run(config, chosen_step(options.run_dir, options.checkpoint))
    for file in write_embeddings(run, options.embeddings, options.owner, options.out):
        print_note(f"written: {file}")


def _export_model(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_start

    print_start("importing torch and TorchRec")
    from stem_torchrec.cli.serving_workers import export_worker
    from stem_torchrec.console.tables import print_export
    from stem_torchrec.distributed.ranks import check_devices, device_type
    from stem_torchrec.launch.launcher import default_num_workers, run_workers, under_torchrun
    from stem_torchrec.runs.folder import load_run_config, require_run
    from stem_torchrec.serving.export import ExportRequest

    require_run("--run", options.run_dir)
    config = load_run_config("--run", options.run_dir, rest, own_options(options))
    name = _name(options.name or options.run_dir.name)
    request = ExportRequest(options.out, options.tables, name, options.overwrite)
    num_workers = options.nproc or default_num_workers(device_type(config.distributed))
    if not under_torchrun():
        check_devices(config.distributed, num_workers)
        request.require_free()
        print_start("loading the checkpoint")
    about = run_workers(num_workers, export_worker, config, options.checkpoint, request)
    if about is None and not under_torchrun():
        raise WorkerError("ended by a signal")
    if about is not None:
        print_export(about.tables, about.notes, str(options.out))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names no feature")
    return names


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise UserError(f"--name: {shown(text)}; allowed: letters, digits, '.', '_' and '-'")
    return text
