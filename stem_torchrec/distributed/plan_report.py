"""What a sharding plan is, for people."""

from collections.abc import Sequence

from torchrec.distributed.planner.types import ShardingOption

from stem_torchrec.distributed.constraints import World

GIB = 1024**3


def plan_report(options: Sequence[ShardingOption], world: World) -> str:
    """A table of shards and the memory per rank, as TorchRec estimates it."""
    title = f"Sharding plan for {world.size} {world.device} ranks, {world.per_node} per node"
    lines = [title, "", *_tables(options, world), ""]
    lines += ["Memory per rank, GiB (TorchRec's estimate: tables, optimizer state, buffers)", ""]
    return "\n".join(lines + _memory(options, world)) + "\n"


def _tables(options: Sequence[ShardingOption], world: World) -> list[str]:
    rows = [("table", "rows", "dim", "sharding", "kernel", "ranks")]
    for option in sorted(options, key=lambda option: option.name):
        ranks = {shard.rank for shard in option.shards}
        num_rows, dim = option.tensor.shape
        where = (
            "all"
            if len(ranks) == world.size
            else _joined(sorted(r for r in ranks if r is not None))
        )
        kinds = option.sharding_type, option.compute_kernel
        rows.append((option.name, f"{num_rows:,}", str(dim), *kinds, where))
    return columns(rows)


def _joined(ranks: Sequence[int]) -> str:
    """``8-15`` for the ranks of a node, else ``1,5``."""
    first, last = ranks[0], ranks[-1]
    if len(ranks) > 2 and last - first + 1 == len(ranks):
        return f"{first}-{last}"
    return ",".join(map(str, ranks))


def _memory(options: Sequence[ShardingOption], world: World) -> list[str]:
    tables_bytes = [0] * world.size
    device_bytes, host_bytes = [0] * world.size, [0] * world.size
    for option in options:
        for shard in option.shards:
            assert shard.rank is not None
            assert shard.storage is not None
            tables_bytes[shard.rank] += shard.size[0] * shard.size[1] * option.tensor.element_size()
            device_bytes[shard.rank] += shard.storage.hbm
            host_bytes[shard.rank] += shard.storage.ddr
    rows: list[tuple[str, ...]] = [("rank", "tables", "device", "host")]
    by_rank = [tables_bytes, device_bytes, host_bytes]
    for rank, figures in enumerate(zip(*by_rank, strict=True)):
        rows.append((str(rank), *(f"{value / GIB:.3f}" for value in figures)))
    ratios = [max(each) * world.size / sum(each) if sum(each) else 1.0 for each in by_rank]
    rows.append(("largest / mean", *(f"{ratio:.2f}" for ratio in ratios)))
    return columns(rows)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of text, its first column as wide as its widest cell, and so on."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
