"""Owners of tables -> one EmbeddingBagCollection -> pooled features by owner.

B rows of the local batch, F_o features of owner o, D embedding dimension.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.distributed.pooled_gradient import PooledGradient
from stem_torchrec.nn.owners import Owners


class OwnerEmbeddings(nn.Module):
    """The tables of all owners in one collection; forward gives each owner's pooled features.

    Table ``owner__feature`` belongs to one owner. Tables are made on the meta device and get
    their values where they are sharded (see ``distributed/tables.py``).

    Args:
        schema: the features in use, in the order in which they are concatenated.
        owners: which owner has tables for which features.
        config: dimension D, clipping and decay.
        world_size: W; a rank's gradient is W times its share of the global batch's.

    Attributes:
        adjust_gradient: to be applied to the pooled features' gradient before it goes on from here.
    """

    def __init__(
        self, schema: Schema, owners: Owners, config: EmbeddingConfig, world_size: int = 1
    ) -> None:
        super().__init__()
        configs = table_configs(schema, owners, config.dim)
        self.tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        self.by_owner = ByOwner(
            {
                owner: {name: _pooled_key(configs, schema, owner, name) for name in names}
                for owner, names in owners.items()
            },
            [f.name for f in schema.sparse if f.kind == "bag" and f.pooling == "mean"],
        )
        self.adjust_gradient = PooledGradient(config.max_gradient, config.weight_decay, world_size)

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled features of each owner, (B, F_o * D) float32, features in the owner's order."""
        return self.by_owner(self.tables(sparse), sparse)


class ByOwner(nn.Module):
    """Joins the pooled features of each owner by name: their order follows the sharding plan.

    Tables pool by sum and bags of mean pooling are divided by their lengths here: TorchRec's
    row-wise mean is wrong where several tables serve one feature (it divides sums as well).

    Splitting and joining beats FBGEMM's ``permute_multi_embedding`` (TorchRec's ``regroup``),
    which on CPU copies element by element.

    Args:
        keys: per owner, feature -> its name among the tables' outputs.
        mean_bags: names of the features whose sums are to be divided.
    """

    def __init__(self, keys: Mapping[str, Mapping[str, str]], mean_bags: Sequence[str]) -> None:
        super().__init__()
        self._keys = keys
        self._mean_bags = mean_bags

    def forward(self, sums: KeyedTensor, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Sums by output name, and the ids they came from -> (B, F_o * D) by owner."""
        by_key = sums.to_dict()
        sizes = {}
        if self._mean_bags:
            lengths = sparse.lengths().view(len(sparse.keys()), -1, 1).clamp(min=1)
            sizes = {name: lengths[sparse.keys().index(name)] for name in self._mean_bags}
        return {
            owner: torch.cat(
                [
                    by_key[key] / sizes[name] if name in sizes else by_key[key]
                    for name, key in keys.items()
                ],
                dim=1,
            )
            for owner, keys in self._keys.items()
        }


def table_configs(schema: Schema, owners: Owners, dim: int) -> list[EmbeddingBagConfig]:
    """One table per owner and feature; features with a common table share it per owner."""
    configs = []
    for owner, names in owners.items():
        by_table: dict[str, list[Feature]] = {}
        for feature in schema.sparse:
            if feature.name in names:
                by_table.setdefault(feature.table_name, []).append(feature)
        for table, features in by_table.items():
            rows = features[0].num_embeddings
            assert rows is not None
            configs.append(
                EmbeddingBagConfig(
                    name=f"{owner}__{table}",
                    embedding_dim=dim,
                    num_embeddings=rows,
                    feature_names=[f.name for f in features],
                    pooling=PoolingType.SUM,  # means are made in ByOwner
                    # Values are set after sharding: they must not depend on the plan.
                    init_fn=_leave_as_is,
                )
            )
    return configs


def _pooled_key(
    configs: Sequence[EmbeddingBagConfig], schema: Schema, owner: str, feature: str
) -> str:
    """The name under which TorchRec returns a feature: with its table where several serve it."""
    table = next(f.table_name for f in schema.sparse if f.name == feature)
    serving = [config for config in configs if feature in config.feature_names]
    return feature if len(serving) == 1 else f"{feature}@{owner}__{table}"


def _leave_as_is(table: Tensor) -> Tensor:
    return table
