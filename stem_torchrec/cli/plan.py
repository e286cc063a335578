"""``plan``: the sharding plan for ranks that need not be here, and what a step costs."""

import argparse
from collections.abc import Sequence

from stem_torchrec.cli.options import (
    Commands,
    add_command,
    add_config,
    config_keys,
    own_options,
    positive,
)
from stem_torchrec.config.reading import load_config

RANKS_PER_NODE = 8


def add_plan(commands: Commands) -> None:
    text = "print the sharding plan and what a step costs; needs no GPU"
    command = add_command(commands, "plan", text, config_keys)
    add_config(command)
    command.add_argument("--world-size", type=positive, default=1, metavar="N", help="ranks in all")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="device of the ranks"
    )
    command.add_argument(
        "--gpus",
        type=numbers,
        default=[],
        metavar="N,N,...",
        help="further numbers of GPUs, of which only the step's cost is printed",
    )
    command.add_argument(
        "--hardware",
        default="h100",
        metavar="NAME",
        help="h100, h200, or a JSON file of benchmarks/calibrate.py, for the step's cost",
    )
    command.add_argument(
        "--bag-ids", type=positive, default=10, metavar="N", help="mean ids of a bag, for the same"
    )
    command.set_defaults(run=plan)


def plan(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_start

    config = load_config(options.config, rest, options=own_options(options))
    print_start("importing torch and TorchRec")
    from stem_torchrec.distributed.constraints import World
    from stem_torchrec.distributed.hardware import hardware_of
    from stem_torchrec.distributed.precision import dense_precision
    from stem_torchrec.launch.notices import hide_dependency_notices
    from stem_torchrec.training.planning import Assumed, cost_report, plan_offline

    hide_dependency_notices()
    precision = dense_precision(config.train.precision, "cuda").name
    assumed = Assumed(hardware_of(options.hardware), precision, options.bag_ids)
    worlds = [
        World(size, config.distributed.ranks_per_node or min(size, RANKS_PER_NODE), options.device)
        for size in (options.world_size, *options.gpus)
    ]
    print_start(f"planning for {options.world_size} ranks")
    print(plan_offline(config, worlds[0]), end="")
    if options.device == "cuda":
        print_start("estimating the cost of a step")
        print(f"\n{cost_report(config, worlds, assumed)}", end="")


def numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
