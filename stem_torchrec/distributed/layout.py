"""Which tables there are: one per owner and feature, or owners' columns side by side in one.

D embedding dimension of a table, n owners of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.nn.owners import Owners


class Table(NamedTuple):
    """A table of the collection.

    Attributes:
        owners: whose columns it has, D each, in this order.
        table: the name that the data has for it.
        features: names of those that it serves; every owner has all of them.
        rows: ids.
        dim: D.
    """

    owners: tuple[str, ...]
    table: str
    features: tuple[str, ...]
    rows: int
    dim: int

    @property
    def name(self) -> str:
        """``owner__table``, or ``owner+2__table`` if two others stand beside the first."""
        more = f"+{len(self.owners) - 1}" if self.is_wide else ""
        return f"{self.owners[0]}{more}__{self.table}"

    @property
    def is_wide(self) -> bool:
        """Whether several owners have columns."""
        return len(self.owners) > 1

    @property
    def width(self) -> int:
        """n * D columns."""
        return len(self.owners) * self.dim

    @property
    def by_owner(self) -> Mapping[str, int]:
        """``owner__table`` -> the owner's place: its columns begin at D times that."""
        return {f"{owner}__{self.table}": place for place, owner in enumerate(self.owners)}


def tables_of(schema: Schema, owners: Owners, config: EmbeddingConfig) -> list[Table]:
    """The tables for the features of these owners.

    Features with a common table share it per owner. ``fused`` joins the owners whose table serves
    the same features, so that no lookup reads a column that nobody wants: an owner alone keeps its
    own table.

    Raises:
        UserError: as ``feature_widths`` does.
    """
    widths = feature_widths(schema, config)
    separate = [
        Table((owner,), table, tuple(features), rows, widths[features[0]])
        for owner, names in owners.items()
        for table, (features, rows) in _by_table(schema, names).items()
    ]
    if config.layout == "separate":
        return separate
    together: dict[tuple[str, tuple[str, ...]], Table] = {}
    for one in separate:
        same = together.setdefault((one.table, one.features), one._replace(owners=()))
        together[one.table, one.features] = same._replace(owners=same.owners + one.owners)
    return list(together.values())


def _by_table(schema: Schema, names: Sequence[str]) -> dict[str, tuple[list[str], int]]:
    """Features and rows of each table of some features."""
    found: dict[str, tuple[list[str], int]] = {}
    for feature in schema.sparse:
        if feature.name in names:
            assert feature.num_embeddings is not None
            found.setdefault(feature.table_name, ([], feature.num_embeddings))[0].append(
                feature.name
            )
    return found
