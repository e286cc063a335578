"""The ways in which a table can be sharded, with TorchRec's estimates of memory and time.

Tables of one size and kind share their estimates: a model has one table per owner and feature, and
those of one feature are alike.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import nn
from torchrec.distributed.planner import ParameterConstraints, Topology
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import Shard, ShardingOption
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from stem_torchrec.distributed.constraints import Constraints, Sharder
from stem_torchrec.distributed.placement import Item

# Whole tables first: ids of row shards are bucketed, and their sums reduced over ranks.
_SHARDINGS = (
    *("table_wise", "table_row_wise", "row_wise"),
    *("column_wise", "table_column_wise", "data_parallel"),
)
_KERNELS = ("fused", "fused_uvm_caching", "fused_uvm", "dense")

_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "rowwise_adagrad": RowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}
"""By ``embedding.optimizer``, the class by which TorchRec knows how much state a weight has."""


class Kind(NamedTuple):
    """What the estimates depend on."""

    rows: int
    dim: int
    dtype: str
    num_features: int
    sharding: tuple[str, ...]
    kernel: tuple[str, ...] | None
    min_partition: int | None


class Way(NamedTuple):
    """One way to shard a table of a kind.

    Attributes:
        option: TorchRec's, of a table that stands for all of the kind; its shards have no ranks.
        item: what its shards cost their ranks.
    """

    option: ShardingOption
    item: Item

    @property
    def largest(self) -> float:
        """Bytes of memory, device and host, of the largest shard."""
        return float(self.item.loads[:, :2].sum(axis=1).max())


class TableOptions:
    """The ways to shard each table of one collection.

    Args:
        limits: what each table may have.
        optimizer: ``embedding.optimizer``; its state counts as memory.
    """

    def __init__(
        self,
        tables: Iterable[EmbeddingBagConfig],
        limits: Constraints,
        topology: Topology,
        batch_size: int,
        optimizer: str,
        sharder: Sharder,
    ) -> None:
        self._topology = topology
        self._device = topology.compute_device
        self._batch_size = batch_size
        self._optimizer = optimizer
        self._sharder = sharder
        self._limits: dict[Kind, ParameterConstraints] = {}
        self._examples: dict[Kind, EmbeddingBagConfig] = {}
        self.kinds: dict[str, Kind] = {}
        for table in tables:
            kind = _kind(table, limits[table.name])
            self.kinds[table.name] = kind
            self._limits.setdefault(kind, limits[table.name])
            self._examples.setdefault(kind, table)
        self._ways: dict[tuple[Kind, str], list[Way]] = {}
        self._estimate((kind, self.shardings(kind)[0]) for kind in self._examples)

    def shardings(self, kind: Kind) -> list[str]:
        """The types that a kind may have with a kernel that it may have, whole tables first."""
        return [
            name
            for name in _SHARDINGS
            if name in kind.sharding
            and set(kind.kernel or _KERNELS)
            & set(self._sharder.compute_kernels(name, self._device))
        ]

    def first(self, kind: Kind) -> Way:
        """The whole table if that is allowed, in device memory if that is."""
        return self._of(kind, self.shardings(kind)[0])[0]

    def smaller(self, kind: Kind, way: Way) -> Way | None:
        """The next sharding type whose largest shard is smaller, with the same kernel."""
        names = self.shardings(kind)
        for name in names[names.index(way.option.sharding_type) + 1 :]:
            for other in self._of(kind, name):
                same = other.option.compute_kernel == way.option.compute_kernel
                if same and other.largest < way.largest:
                    return other
        return None

    def on_host(self, kind: Kind, way: Way) -> Way | None:
        """The same sharding with less in device memory."""
        ways = self._of(kind, way.option.sharding_type)
        device = way.item.loads[:, 0].sum()
        return next((w for w in ways[ways.index(way) :] if w.item.loads[:, 0].sum() < device), None)

    def _of(self, kind: Kind, sharding: str) -> list[Way]:
        """By preference of the kernel."""
        if (kind, sharding) not in self._ways:
            self._estimate([(kind, sharding)])
        return self._ways[kind, sharding]

    def _estimate(self, asked: Iterable[tuple[Kind, str]]) -> None:
        by_sharding: dict[str, list[Kind]] = {}
        for kind, sharding in asked:
            by_sharding.setdefault(sharding, []).append(kind)
        for sharding, kinds in by_sharding.items():
            by_name = {self._examples[kind].name: kind for kind in kinds}
            for option in self._options(by_name, sharding):
                self._ways.setdefault((by_name[option.name], sharding), []).append(_way(option))
            for kind in kinds:
                self._ways[kind, sharding].sort(
                    key=lambda way: _KERNELS.index(way.option.compute_kernel)
                )

    def _options(self, by_name: Mapping[str, Kind], sharding: str) -> list[ShardingOption]:
        """TorchRec's options of one table of each kind, memory and time estimated."""
        tables = EmbeddingBagCollection(
            tables=[self._examples[kind] for kind in by_name.values()], device=torch.device("meta")
        )
        for weight in tables.parameters():
            weight._optimizer_classes = [_OPTIMIZERS[self._optimizer]]
        constraints = {
            name: ParameterConstraints(
                sharding_types=[sharding],
                compute_kernels=self._limits[kind].compute_kernels,
                min_partition=kind.min_partition,
                pooling_factors=[1.0] * kind.num_features,
            )
            for name, kind in by_name.items()
        }
        enumerator = EmbeddingEnumerator(self._topology, self._batch_size, constraints)
        # As a part of another module: TorchRec looks for tables below what it is given.
        found = enumerator.enumerate(nn.ModuleDict({"tables": tables}), [self._sharder])
        return [option for option in found if option.compute_kernel in _KERNELS]


def option_of(
    table: EmbeddingBagConfig, path: str, module: EmbeddingBagCollection, way: Way, ranks: list[int]
) -> ShardingOption:
    """TorchRec's option for one table, its shards on their ranks."""
    like = way.option
    return ShardingOption(
        name=table.name,
        tensor=module.embedding_bags[table.name].weight,
        module=(path, module),
        input_lengths=like.input_lengths,
        batch_size=like.batch_size,
        sharding_type=like.sharding_type,
        partition_by=like.partition_by,
        compute_kernel=like.compute_kernel,
        shards=[
            Shard(shard.size, shard.offset, shard.storage, shard.perf, rank)
            for shard, rank in zip(like.shards, ranks, strict=True)
        ],
        is_pooled=True,
    )


def _kind(table: EmbeddingBagConfig, limit: ParameterConstraints) -> Kind:
    return Kind(
        rows=table.num_embeddings,
        dim=table.embedding_dim,
        dtype=table.data_type.value,
        num_features=len(table.feature_names),
        sharding=tuple(limit.sharding_types or ()),
        kernel=tuple(limit.compute_kernels) if limit.compute_kernels else None,
        min_partition=limit.min_partition,
    )


def _way(option: ShardingOption) -> Way:
    costs = []
    for shard in option.shards:
        assert shard.storage is not None
        assert shard.perf is not None
        costs.append((shard.storage.hbm, shard.storage.ddr, shard.perf.total))
    spread = cast(Literal["uniform", "host", "device"], option.partition_by)
    return Way(option, Item(np.array(costs, dtype=np.float64), spread))
