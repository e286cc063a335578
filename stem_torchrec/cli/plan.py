"""``plan``: the sharding plan for ranks that need not be here."""

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


def add_plan(commands: Commands) -> None:
    text = "print the sharding plan; needs no GPU"
    command = add_command(commands, "plan", text, config_keys)
    add_config(command)
    command.add_argument("--world-size", type=positive, default=1, metavar="N", help="ranks in all")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda", help="device of the ranks"
    )
    command.set_defaults(run=plan)


def plan(options: argparse.Namespace, rest: Sequence[str]) -> None:
    from stem_torchrec.console import print_start

    config = load_config(options.config, rest, options=own_options(options))
    print_start("importing torch and TorchRec")
    from stem_torchrec.distributed.constraints import World
    from stem_torchrec.launch.notices import hide_dependency_notices
    from stem_torchrec.training.checks import plan_offline

    hide_dependency_notices()
    print_start(f"planning for {options.world_size} ranks")
    per_node = config.distributed.ranks_per_node or min(options.world_size, 8)
    print(plan_offline(config, World(options.world_size, per_node, options.device)), end="")
