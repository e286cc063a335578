"""The local shards of the tables, and initial values that do not depend on the plan."""

import hashlib
import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

_CHUNK_ROWS = 1 << 16


class TableShard(NamedTuple):
    """A rank's piece of one table.

    Attributes:
        table: ``owner__feature``.
        values: (rows, columns) of the piece; writing it writes the table.
        first_row, first_column: where the piece lies in the table.
        dim: columns of the whole table.
    """

    table: str
    values: Tensor
    first_row: int
    first_column: int
    dim: int


def local_shards(model: nn.Module) -> Iterator[TableShard]:
    """This rank's pieces of every table of a sharded model; a data-parallel table is one piece."""
    for name, value in model.state_dict().items():
        if ".embedding_bags." not in name:
            continue
        table = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if isinstance(value, ShardedTensor):
            dim = value.metadata().size[1]
            for shard in value.local_shards():
                row, column = shard.metadata.shard_offsets
                yield TableShard(table, shard.tensor.detach(), row, column, dim)
        else:
            yield TableShard(table, value.detach(), 0, 0, value.shape[1])


def whole_tables(model: nn.Module, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
    """Copies of the named tables on the host, (rows, D) each; this rank holds all their shards."""
    shards: dict[str, list[TableShard]] = {}
    for shard in local_shards(model):
        if shard.table in names:
            shards.setdefault(shard.table, []).append(shard)
    tables = {}
    for name, pieces in shards.items():
        num_rows = max(piece.first_row + len(piece.values) for piece in pieces)
        table = np.empty((num_rows, pieces[0].dim), dtype=np.float32)
        for piece in pieces:
            rows, columns = piece.values.shape
            place = np.s_[
                piece.first_row : piece.first_row + rows,
                piece.first_column : piece.first_column + columns,
            ]
            table[place] = piece.values.float().cpu().numpy()
        tables[name] = table
    return tables


@torch.no_grad()
def initialise_tables(model: nn.Module, *, seed: int, std: float) -> None:
    """Uniform values of standard deviation ``std``: a function of seed, table, row and column.

    Any plan, number of ranks and device gives the same table.
    """
    for shard in local_shards(model):
        _fill(shard, _table_seed(seed, shard.table), std * math.sqrt(3))


def _table_seed(seed: int, table: str) -> int:
    digest = hashlib.sha256(f"{seed}/{table}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _fill(shard: TableShard, seed: int, bound: float) -> None:
    rows, columns = shard.values.shape
    device = shard.values.device
    column = torch.arange(columns, device=device) + shard.first_column
    for start in range(0, rows, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, rows)
        row = torch.arange(start, stop, device=device)[:, None] + shard.first_row
        unit = _unit_interval(row * shard.dim + column, seed)
        shard.values[start:stop] = (2 * unit - 1) * bound


def _unit_interval(counter: Tensor, seed: int) -> Tensor:
    """Hash of int64 counters to float32 in [0, 1): SplitMix64's finaliser (Steele et al. 2014)."""
    z = counter * -7046029254386353131 + seed
    z = (z ^ _shift(z, 30)) * -4658895280553007687
    z = (z ^ _shift(z, 27)) * -7723592293110705685
    z = z ^ _shift(z, 31)
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
