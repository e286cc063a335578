"""What the config lets the planner choose for each table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import NamedTuple

from torch import nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import ParameterConstraints
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config import DistributedConfig, TableConstraint
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.layout import Table
from stem_torchrec.errors import UserError

# Column shards: the planner's own lower bound is 128 columns, too wide for small tables.
MIN_COLUMNS = 4
# That bound, where the planner is to choose; it cannot keep owners whole.
PLANNERS_MIN_COLUMNS = 128


class World(NamedTuple):
    """The ranks a plan is made for.

    Attributes:
        size: ranks in all.
        per_node: ranks on one node.
        device: ``cpu`` or ``cuda``.
    """

    size: int
    per_node: int
    device: str


class Sharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with the sharding types that work on CPU too, though it hides them."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [*super().sharding_types("cuda")]


class Free(NamedTuple):
    """What the planner may choose from where the config leaves a choice."""

    sharding: tuple[str, ...]
    kernel: tuple[str, ...] | None


Constraints = dict[str, ParameterConstraints]
"""By table."""


def table_rows(module: nn.Module) -> dict[str, int]:
    """Rows of the tables of an unsharded module by name, ``owner__feature``."""
    return {
        table.name: table.num_embeddings
        for part in module.modules()
        if isinstance(part, EmbeddingBagCollection)
        for table in part.embedding_bag_configs()
    }


def with_whole_owners(limits: Constraints, module: nn.Module) -> Constraints:
    """The same where a column shard of a wide table holds all columns of its owners.

    What an optimizer keeps of a row's columns then belongs to whole owners, and the state of a wide
    table can be told apart by owner.
    """
    wide = {
        table.name: table
        for part in module.modules()
        if isinstance(part, OwnerEmbeddings)
        for table in part.layout
        if table.is_wide
    }
    return {
        name: replace(limit, min_partition=_columns_of_owners(wide[name], limit.min_partition))
        if name in wide
        else limit
        for name, limit in limits.items()
    }


def _columns_of_owners(table: Table, least: int | None) -> int:
    """The fewest columns of equal shards that are not fewer than ``least``."""
    num_owners = len(table.owners)
    enough = (n for n in range(1, num_owners) if n * table.dim >= (least or PLANNERS_MIN_COLUMNS))
    return next((n for n in enough if num_owners % n == 0), num_owners) * table.dim


def check_patterns(config: DistributedConfig, tables: Iterable[str]) -> None:
    """Raise UserError if a pattern of ``distributed.tables`` matches no table."""
    for pattern in config.tables:
        if not any(fnmatch(table, pattern) for table in tables):
            raise UserError(
                f"distributed.tables: {pattern!r} matches no table; there are {', '.join(tables)}"
            )


def check_pipeline(config: DistributedConfig, device: str) -> None:
    """Raise UserError if ``distributed.pipeline`` prefetches rows, but no table caches any."""
    caching = "fused_uvm_caching"
    kernels = [config.kernel, *(name for c in config.tables.values() for name in c.kernel or ())]
    if config.pipeline != "prefetch" or (device == "cuda" and caching in kernels):
        return
    raise UserError(
        f"distributed.pipeline: 'prefetch' is for tables of kernel {caching} on cuda ranks; device "
        f"is {device}, kernels asked for: {', '.join(dict.fromkeys(kernels))}; allowed here: auto, "
        "base, sparse_dist"
    )


def choices(
    config: DistributedConfig, tables: Mapping[str, int], world: World, *, fused_only: bool = False
) -> Sequence[Constraints]:
    """The planner's constraints in order of preference, from all that the config allows.

    Args:
        tables: rows by table.
        fused_only: data-parallel tables, which are outside of the fused optimizers, are no choice.

    Raises:
        UserError: a table has a kernel that no sharding type it may have offers on this device.
    """
    found = []
    problem = None
    for free in _free_choices(world, fused_only):
        limits = constraints(config, tables, free, world)
        impossible = _impossible(config, limits, world.device)
        if impossible is None:
            found.append(limits)
        problem = impossible
    if problem is not None and not found:
        raise UserError(problem)
    return found


def _free_choices(world: World, fused_only: bool) -> list[Free]:
    """In order of preference; the next one is tried where nothing fits.

    Whole tables are cheapest on one rank and on CPU ranks (no bucketing of ids, no reduce-scatter).
    On GPUs large ones are divided by rows, for memory that is even; device memory comes before
    memory on the host. Column shards change the numbers of row-wise Adagrad, so nobody gets them
    unasked, nor data-parallel tables, which have no fused optimizer: they are for who asks for the
    dense kernel.
    """
    by_rows: tuple[str, ...] = ("row_wise",)
    if world.size == 1:
        by_rows = ()
    elif world.size > world.per_node and world.size % world.per_node == 0:
        by_rows = ("table_row_wise", "row_wise")
    first = ("table_wise",) if world.device == "cpu" else ("table_wise", *by_rows)
    every = ("table_wise", *by_rows) if fused_only else ("table_wise", *by_rows, "data_parallel")
    return [Free(first, ("fused", "dense")), Free(every, None)]


def constraints(
    config: DistributedConfig, tables: Mapping[str, int], free: Free, world: World
) -> Constraints:
    """The planner's constraints of each table: the first matching pattern's, else the global.

    ``free`` holds where the config names nothing for a table.
    """
    result = {}
    for table, rows in tables.items():
        own = _own(config, table)
        asked = (own and own.sharding) or _one(config.sharding)
        kernel = (own and own.kernel) or _one(config.kernel) or free.kernel
        result[table] = ParameterConstraints(
            sharding_types=_with_rows_for_all(asked or free.sharding, rows, world),
            compute_kernels=list(kernel) if kernel else None,
            min_partition=(own and own.min_partition) or (MIN_COLUMNS if asked else None),
        )
    return result


def _with_rows_for_all(sharding: Sequence[str], rows: int, world: World) -> list[str]:
    """The sharding types that leave no rank without a row of the table; whole if none does.

    FBGEMM takes no shard of 0 rows on a CPU, and a table that small is not worth dividing.
    """
    ranks = {"row_wise": world.size, "table_row_wise": min(world.per_node, world.size)}
    kept = [kind for kind in sharding if _last_gets_a_row(rows, ranks.get(kind, 1))]
    return kept or ["table_wise"]


def _last_gets_a_row(rows: int, ranks: int) -> bool:
    """TorchRec's row shards have ``ceil(rows / ranks)`` rows each until there are none left."""
    return math.ceil(rows / ranks) * (ranks - 1) < rows


def _impossible(config: DistributedConfig, limits: Constraints, device: str) -> str | None:
    """What to say of the first table that can have no kernel; None if all can."""
    sharder = Sharder()
    for table, limit in limits.items():
        kinds = limit.sharding_types or []
        offered = dict.fromkeys(k for kind in kinds for k in sharder.compute_kernels(kind, device))
        asked = limit.compute_kernels
        if asked is None or set(asked) & set(offered):
            continue
        own = _own(config, table)
        key = "tables" if own is not None and own.kernel else "kernel"
        known = [kernel for kernel in offered if kernel.startswith(("fused", "dense"))]
        return (
            f"distributed.{key}: table {table!r} has the kernel {', '.join(asked)}, which {device} "
            f"ranks do not have with sharding {', '.join(kinds)}; they have {', '.join(known)}"
        )
    return None


def _own(config: DistributedConfig, table: str) -> TableConstraint | None:
    return next((c for pattern, c in config.tables.items() if fnmatch(table, pattern)), None)


def _one(value: str) -> tuple[str, ...] | None:
    return None if value == "auto" else (value,)
