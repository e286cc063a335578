"""The tables of a job of one rank: ids go straight into their kernels.

B rows of the batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torchrec.distributed.types import ShardingPlan, ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


class _Group(NamedTuple):
    """Tables that one module of TorchRec's looks up, with the features that it wants in order."""

    lookup: nn.Module
    features: list[str]


class LocalLookup:
    """Pooled sums as a sharded collection gives them, without its exchange of ids and sums.

    With one rank the exchange changes nothing, yet costs a GPU's host more than the lookup does,
    and waits for the device: it copies the numbers of ids there and back.

    Args:
        tables: TorchRec's sharded collection; every table is whole (see ``is_local``).
    """

    def __init__(self, tables: Any) -> None:
        self._groups = []
        self._keys: list[str] = []
        self._widths: list[int] = []
        for lookup in tables._lookups:
            features: list[str] = []
            for config in lookup.grouped_configs:
                features += config.feature_names()
                self._keys += config.embedding_names()
                self._widths += config.embedding_dims()
            self._groups.append(_Group(lookup, features))
        self._orders: dict[tuple[int, tuple[str, ...], torch.device], torch.Tensor] = {}

    def __call__(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        """Ids of B rows -> sums (B, C) by output name; its graph reaches the tables."""
        sums = [group.lookup(self._arranged(k, sparse)) for k, group in enumerate(self._groups)]
        values = sums[0] if len(sums) == 1 else torch.cat(sums, dim=1)
        return KeyedTensor(self._keys, self._widths, values)

    def _arranged(self, k: int, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The features of a group in its order; one that several tables serve is there for each."""
        wanted = self._groups[k].features
        if wanted == sparse.keys():
            return sparse
        order = _order(wanted, sparse.keys())
        place = (k, tuple(sparse.keys()), sparse.device())
        if place not in self._orders:  # once: a copy to the device waits for it
            self._orders[place] = torch.tensor(order, dtype=torch.int32, device=sparse.device())
        return sparse.permute(order, self._orders[place])


def _order(wanted: Sequence[str], keys: Sequence[str]) -> list[int]:
    places = {name: place for place, name in enumerate(keys)}
    return [places[name] for name in wanted]


def is_local(plan: ShardingPlan, world_size: int) -> bool:
    """Whether all tables are whole on the only rank."""
    shardings = (table for module in plan.plan.values() for table in module.values())
    return world_size == 1 and all(
        table.sharding_type == ShardingType.TABLE_WISE.value for table in shardings
    )
