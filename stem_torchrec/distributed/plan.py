"""The sharding plan: a choice for every table under the config's constraints, and its report.

TorchRec's own planner proposes table by table and gives every proposal its ranks anew; hundreds of
tables on a hundred ranks take it hours. Here equal tables are one decision
(``table_options.py``), whole tables are what is tried first (``plan_search.py``), and ranks are
given out in one pass (``placement.py``). The estimates and the plan's format are TorchRec's.
"""

from typing import NamedTuple

import numpy as np
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.planners import to_sharding_plan
from torchrec.distributed.planner.types import ShardingOption
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.distributed.constraints import (
    Constraints,
    Sharder,
    World,
    check_patterns,
    choices,
    table_rows,
    with_whole_owners,
)
from stem_torchrec.distributed.optimizers import is_fused
from stem_torchrec.distributed.placement import Loads
from stem_torchrec.distributed.plan_report import GIB, plan_report
from stem_torchrec.distributed.plan_search import NoRoom, search
from stem_torchrec.distributed.precision import check_precision
from stem_torchrec.distributed.table_options import TableOptions, option_of
from stem_torchrec.errors import UserError

# Share of device memory left to the dense weights, activations and the caching allocator.
RESERVED_SHARE = 0.15


class LargestOverMean(NamedTuple):
    """How even a plan is: the fullest, and the busiest, rank over the mean of all."""

    memory: float
    time: float


class Planned(NamedTuple):
    plan: ShardingPlan
    report: str
    balance: LargestOverMean


def make_plan(config: Config, module: nn.Module, world: World, sharder: Sharder) -> Planned:
    """Plan the tables of ``module`` (on the meta device) for ``world``; needs no device.

    The same arguments give the same plan.

    Raises:
        UserError: a constraint names no table or a kernel that the device does not have, or no plan
            fits the memory and the constraints; or as ``check_precision`` does.
    """
    tables = table_rows(module)
    check_patterns(config.distributed, tables)
    check_precision(config, world.device)
    topology = _topology(config.distributed, world)
    problem = None
    lowered = config.embedding.precision != "fp32"
    for allowed in choices(config.distributed, tables, world, fused_only=lowered):
        limits = with_whole_owners(allowed, module)
        try:
            options, loads = _plan(config, module, world, sharder, topology, limits)
        except NoRoom as missing:
            problem = missing
            continue
        if not is_fused(config.embedding, world.device):
            for option in options:
                option.compute_kernel = "dense"
        report = plan_report(options, world)
        return Planned(to_sharding_plan(options, topology), report, _balance(loads, world))
    raise UserError(
        "distributed: no sharding plan fits the constraints and the memory "
        f"({world.size} {world.device} ranks, hbm_gib {config.distributed.hbm_gib}, host_gib "
        f"{config.distributed.host_gib}): {problem}"
    )


def _plan(
    config: Config,
    module: nn.Module,
    world: World,
    sharder: Sharder,
    topology: Topology,
    limits: Constraints,
) -> tuple[list[ShardingOption], Loads]:
    """Every table's shards with their ranks, and what each rank then has."""
    path, collection = _collection(module)
    tables = {table.name: table for table in collection.embedding_bag_configs()}
    batch_size, optimizer = config.train.batch_rows, config.embedding.optimizer
    options = TableOptions(tables.values(), limits, topology, batch_size, optimizer, sharder)
    found = search(options, world, _room(topology))
    shards = [
        option_of(tables[name], path, collection, way, ranks)
        for (name, way), ranks in zip(found.ways.items(), found.placement.ranks, strict=True)
    ]
    return shards, found.placement.loads


def _balance(loads: Loads, world: World) -> LargestOverMean:
    memory, time = loads[:, 0 if world.device == "cuda" else 1], loads[:, 2]
    return LargestOverMean(float(memory.max() / memory.mean()), float(time.max() / time.mean()))


def _collection(module: nn.Module) -> tuple[str, EmbeddingBagCollection]:
    """The one collection of tables of a model, and where it is."""
    ((path, collection),) = (
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, EmbeddingBagCollection)
    )
    return path, collection


def _room(topology: Topology) -> Loads:
    """(2,), the device and host bytes that a rank has for its tables."""
    storage = topology.devices[0].storage
    return np.array([(1 - RESERVED_SHARE) * storage.hbm, storage.ddr], dtype=np.float64)


def _topology(config: DistributedConfig, world: World) -> Topology:
    return Topology(
        world_size=world.size,
        local_world_size=min(world.per_node, world.size),
        compute_device=world.device,
        hbm_cap=int(config.hbm_gib * GIB) if config.hbm_gib else _device_memory(world.device),
        ddr_cap=int(config.host_gib * GIB) if config.host_gib else None,
    )


def _device_memory(device: str) -> int | None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return None
