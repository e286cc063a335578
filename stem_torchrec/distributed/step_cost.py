"""What a step costs by part, and what bounds it: a model of the trainer's step on GPUs.

All figures are of the busiest rank. The dense part's operations take the longer of their products
and their memory; the tables are their memory; pooled features travel between the two, while nothing
computes. Ids and dense gradients travel beside the computation and count where they take longer
than all of it, and so does the host.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torchrec.distributed.types import ShardingPlan

from stem_torchrec.distributed.constraints import World
from stem_torchrec.distributed.dense_cost import Operation
from stem_torchrec.distributed.hardware import Hardware
from stem_torchrec.distributed.placement import Loads
from stem_torchrec.distributed.precision import Products

_ID_BYTES = 8
# FBGEMM sorts ids with their places, four passes of 8 + 4 bytes read and written.
_SORT_BYTES = 4 * 2 * (8 + 4)
_FLOAT_BYTES = 4


class StepCost(NamedTuple):
    """Milliseconds of one step.

    Attributes:
        compute: matrix products alone.
        memory: device memory alone, of the dense part and the tables.
        node_links, network: what travels inside a node and between nodes.
        host: launching what the device does.
        step: the whole, with what overlaps.
        samples_per_s: of all ranks.
        bound: the part that takes longest of what makes the step as long as it is.
    """

    compute: float
    memory: float
    node_links: float
    network: float
    host: float
    step: float
    samples_per_s: float
    bound: str


class TableUse(NamedTuple):
    """A table, and what a row of the batch asks of it.

    Attributes:
        rows, dim, element_bytes: of the table.
        features: pooled features that it makes.
        ids: looked up, mean per row of the batch.
    """

    rows: int
    dim: int
    element_bytes: int
    features: int
    ids: float


class Traffic(NamedTuple):
    """Bytes of the busiest rank in one step.

    Attributes:
        memory: lookups and updates of the tables.
        pooled: pooled features and their gradients, the one direction of each: inside, between.
        beside: ids, and the dense gradients' sum: inside, between.
    """

    memory: float
    pooled: tuple[float, float]
    beside: tuple[float, float]


def step_cost(
    operations: Sequence[Operation],
    traffic: Traffic,
    world: World,
    batch_size: int,
    hardware: Hardware,
    precision: Products,
) -> StepCost:
    """Milliseconds by part. In bf16 half of the dense part's bytes are counted."""
    rate = getattr(hardware, f"{precision}_flops_per_s")
    half = 0.5 if precision == "bf16" else 1.0
    products = np.array([each.flops for each in operations]) / rate
    moved = half * np.array([each.num_bytes for each in operations]) / hardware.memory_bytes_per_s
    tables = traffic.memory / hardware.memory_bytes_per_s
    links = hardware.node_link_bytes_per_s, hardware.network_bytes_per_s
    pooled = [num_bytes / rate for num_bytes, rate in zip(traffic.pooled, links, strict=True)]
    beside = [num_bytes / rate for num_bytes, rate in zip(traffic.beside, links, strict=True)]
    host = hardware.step_s + hardware.operation_s * len(operations)
    device = float(np.maximum(products, moved).sum()) + tables + max(pooled)
    parts = {
        "compute": float(products.sum()),
        "memory": float(moved.sum()) + tables,
        "node_links": pooled[0] + beside[0],
        "network": pooled[1] + beside[1],
        "host": host,
    }
    step = max(device, parts["node_links"], parts["network"], host)
    of_step = {"host", "node_links", "network"} if device < step else parts.keys() - {"host"}
    bound = max(sorted(of_step), key=lambda part: parts[part])
    in_ms = {part: 1e3 * seconds for part, seconds in parts.items()}
    return StepCost(
        **in_ms, step=1e3 * step, samples_per_s=world.size * batch_size / step, bound=bound
    )


def traffic_of(
    plan: ShardingPlan,
    tables: Mapping[str, TableUse],
    dense_bytes: float,
    world: World,
    batch_size: int,
) -> Traffic:
    """The busiest rank's bytes under a plan.

    Args:
        dense_bytes: of the dense weights' gradients.
    """
    memory = np.zeros(world.size)
    pooled, ids = np.zeros((world.size, 2)), np.zeros((world.size, 2))
    per_node = min(world.per_node, world.size)
    inside, between = (per_node - 1) / world.size, (world.size - per_node) / world.size
    away = np.array([inside, between])
    # Summed in the node first, where every rank has a part of the others' sums.
    away_by_node = np.array([(per_node - 1) / per_node, between / per_node])
    (module,) = plan.plan.values()
    for name, sharding in module.items():  # type: ignore[attr-defined]
        table, kind = tables[name], sharding.sharding_type
        for rank, rows, columns in _shards(sharding, table):
            batches = batch_size * (1 if kind == "data_parallel" else world.size)
            num_ids = batches * table.ids * rows / table.rows
            sums = 2 * batches * table.features * columns * _FLOAT_BYTES  # and gradients
            row_bytes = 3 * columns * table.element_bytes + columns * _FLOAT_BYTES
            memory[rank] += num_ids * (_SORT_BYTES + row_bytes) + sums
            if kind != "data_parallel":
                ids[rank] += num_ids * _ID_BYTES * away
                pooled[rank] += sums * (away_by_node if kind == "table_row_wise" else away)
    beside = ids.max(axis=0) + _all_reduce(dense_bytes, world)
    return Traffic(float(memory.max()), _pair(pooled.max(axis=0)), _pair(beside))


def _shards(sharding: Any, table: TableUse) -> Iterator[tuple[int, int, int]]:
    """Rank, rows and columns of each shard; a data-parallel table is whole on every rank."""
    if sharding.sharding_spec is None:
        yield from ((rank, table.rows, table.dim) for rank in sharding.ranks)
        return
    for rank, shard in zip(sharding.ranks, sharding.sharding_spec.shards, strict=True):
        yield rank, *shard.shard_sizes


def _all_reduce(num_bytes: float, world: World) -> Loads:
    """(2,), what a GPU sends inside its node and between nodes: rings over the nodes, one for each
    GPU of a node."""
    per_node = min(world.per_node, world.size)
    num_nodes = world.size / per_node
    inside = 2 * num_bytes * (per_node - 1) / per_node
    return np.array([inside, 2 * num_bytes / per_node * (num_nodes - 1) / num_nodes])


def _pair(values: Loads) -> tuple[float, float]:
    return float(values[0]), float(values[1])
