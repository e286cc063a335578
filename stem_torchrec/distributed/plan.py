"""The sharding plan: TorchRec's planner under the config's constraints, and its report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption, Stats
from torchrec.distributed.types import ShardingPlan

from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.distributed.constraints import (
    Sharder,
    World,
    check_patterns,
    choices,
    table_rows,
    with_whole_owners,
)
from stem_torchrec.distributed.optimizers import is_fused
from stem_torchrec.errors import UserError

GIB = 1024**3
# Proposals in a row that may be worse than the best before the search ends: hundreds of small
# tables would otherwise take minutes.
PATIENCE = 50
# Share of memory left to the dense weights, activations and the caching allocator.
RESERVED_SHARE = 0.15


class Planned(NamedTuple):
    plan: ShardingPlan
    report: str


def make_plan(config: Config, module: nn.Module, world: World, sharder: Sharder) -> Planned:
    """Plan the tables of ``module`` (on the meta device) for ``world``; needs no device.

    Raises:
        UserError: a constraint names no table or a kernel that the device does not have, or no plan
            fits the memory and the constraints.
    """
    tables = table_rows(module)
    check_patterns(config.distributed, tables)
    plan, options = _search(config, module, world, sharder, tables)
    if not is_fused(config.embedding, world.device):
        _use_dense_kernel(plan, options)
    return Planned(plan, plan_report(options, world))


def _search(
    config: Config, module: nn.Module, world: World, sharder: Sharder, tables: Mapping[str, int]
) -> tuple[ShardingPlan, list[ShardingOption]]:
    recorder = _Recorder()
    failure: PlannerError | None = None
    for limits in choices(config.distributed, tables, world):
        planner = EmbeddingShardingPlanner(
            topology=_topology(config.distributed, world),
            batch_size=config.train.batch_size,
            storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
            proposer=[
                GreedyProposer(threshold=PATIENCE),
                GreedyProposer(use_depth=False, threshold=PATIENCE),
                UniformProposer(),
            ],
            constraints=with_whole_owners(limits, module),
            stats=recorder,
            debug=False,
        )
        try:
            return planner.plan(module, [sharder]), recorder.options
        except PlannerError as error:
            failure = error
    raise UserError(
        "distributed: no sharding plan fits the constraints and the memory "
        f"({world.size} {world.device} ranks, hbm_gib {config.distributed.hbm_gib}, host_gib "
        f"{config.distributed.host_gib}); the planner says: {str(failure).strip()}"
    )


def plan_report(options: Sequence[ShardingOption], world: World) -> str:
    """A table of shards and the memory per rank, as the planner estimates it."""
    lines = [f"Sharding plan for {world.size} {world.device} ranks, {world.per_node} per node", ""]
    rows = [("table", "rows", "dim", "sharding", "kernel", "ranks")]
    tables_bytes = [0] * world.size
    device_bytes, host_bytes = [0] * world.size, [0] * world.size
    for option in sorted(options, key=lambda option: option.name):
        ranks = [shard.rank for shard in option.shards]
        num_rows, dim = option.tensor.shape
        where = "all" if len(set(ranks)) == world.size else ",".join(map(str, sorted(ranks)))
        rows.append(
            (
                option.name,
                f"{num_rows:,}",
                str(dim),
                option.sharding_type,
                option.compute_kernel,
                where,
            )
        )
        for shard in option.shards:
            tables_bytes[shard.rank] += shard.size[0] * shard.size[1] * option.tensor.element_size()
            device_bytes[shard.rank] += shard.storage.hbm
            host_bytes[shard.rank] += shard.storage.ddr
    lines += _columns(rows)
    lines += ["", "Memory per rank, GiB (planner's estimate: tables, optimizer state, buffers)", ""]
    memory: list[tuple[str, ...]] = [("rank", "tables", "device", "host")]
    for rank in range(world.size):
        figures = (tables_bytes[rank], device_bytes[rank], host_bytes[rank])
        memory.append((str(rank), *(f"{value / GIB:.3f}" for value in figures)))
    return "\n".join(lines + _columns(memory)) + "\n"


class _Recorder(Stats):
    """Keeps the planner's chosen options, with shard sizes and memory, for the report."""

    def __init__(self) -> None:
        self.options: list[ShardingOption] = []

    def log(self, *args: Any, best_plan: list[ShardingOption], **kwargs: Any) -> None:
        self.options = best_plan


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


def _use_dense_kernel(plan: ShardingPlan, options: Sequence[ShardingOption]) -> None:
    # The planner refuses the dense kernel for sharded tables; the sharded modules take it.
    for tables in plan.plan.values():
        for sharding in tables.values():  # type: ignore[attr-defined]
            sharding.compute_kernel = "dense"
    for option in options:
        option.compute_kernel = "dense"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
