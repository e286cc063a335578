"""Owners of tables -> one EmbeddingBagCollection -> pooled features by owner.

B rows of the local batch, D_f embedding dimension of feature f, C_o columns of owner o: the sum of
its features' D_f.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.by_owner import ByOwner, Place
from stem_torchrec.distributed.layout import Table, tables_of
from stem_torchrec.distributed.local_lookup import LocalLookup
from stem_torchrec.distributed.pooled_gradient import PooledGradient
from stem_torchrec.distributed.precision import TABLE_TYPES
from stem_torchrec.distributed.state_by_owner import name_by_owner
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.nn.owners import Owners


class OwnerEmbeddings(nn.Module):
    """The tables of all owners in one collection; forward gives each owner's pooled features.

    Tables are made on the meta device and get their values where they are sharded (see
    ``distributed/tables.py``). The state has one table ``owner__feature`` per owner and feature,
    however the owners' columns lie (see ``distributed/state_by_owner.py``).

    Args:
        schema: the features in use, in the order in which they are concatenated.
        owners: which owner has tables for which features.
        config: dimensions, layout, precision, clipping and decay.
        world_size: W; a rank's gradient is W times its share of the global batch's.

    Attributes:
        adjust_gradient: to be applied to the pooled features' gradient before it goes on from here.
        layout: the tables.
        local: looks ids up without an exchange, where all tables are on this one rank; else None.
    """

    def __init__(
        self, schema: Schema, owners: Owners, config: EmbeddingConfig, world_size: int = 1
    ) -> None:
        super().__init__()
        self.layout = tables_of(schema, owners, config)
        self.tables = EmbeddingBagCollection(
            tables=table_configs(self.layout, TABLE_TYPES[config.precision]),
            device=torch.device("meta"),
        )
        self.by_owner = ByOwner(
            {
                owner: {name: _place(self.layout, owner, name) for name in names}
                for owner, names in owners.items()
            },
            feature_widths(schema, config),
            [f.name for f in schema.sparse if f.kind == "bag" and f.pooling == "mean"],
        )
        self.adjust_gradient = PooledGradient(config.max_gradient, config.weight_decay, world_size)
        self.local: LocalLookup | None = None
        name_by_owner(self)

    def forward(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Pooled features of each owner, (B, C_o) float32, features in the owner's order."""
        return self.by_owner(self.sums(sparse), sparse)

    def sums(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        """Sums over bags by output name, as the tables give them. Collective."""
        sums: KeyedTensor = self.tables(sparse) if self.local is None else self.local(sparse)
        return sums


def table_configs(
    layout: Sequence[Table], data_type: DataType = DataType.FP32
) -> list[EmbeddingBagConfig]:
    """The tables as TorchRec wants them."""
    return [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.width,
            num_embeddings=table.rows,
            data_type=data_type,
            feature_names=list(table.features),
            pooling=PoolingType.SUM,  # means are made in ByOwner
            # Values are set after sharding: they must not depend on the plan.
            init_fn=_leave_as_is,
        )
        for table in layout
    ]


def _place(layout: Sequence[Table], owner: str, feature: str) -> Place:
    """TorchRec returns a feature under its name, with that of its table where several serve it."""
    serving = [table for table in layout if feature in table.features]
    own = next(table for table in serving if owner in table.owners)
    key = feature if len(serving) == 1 else f"{feature}@{own.name}"
    return key, own.owners.index(owner)


def _leave_as_is(table: Tensor) -> Tensor:
    return table
