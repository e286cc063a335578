"""How many columns a feature's tables have, by ``embedding.dims`` and ``embedding.dim``."""

from collections.abc import Mapping

from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.data.schema import Schema
from stem_torchrec.errors import UserError, did_you_mean


def feature_widths(schema: Schema, config: EmbeddingConfig) -> dict[str, int]:
    """Id or bag feature -> embedding dimension, in the schema's order.

    Raises:
        UserError: a name or pattern of ``embedding.dims`` fits no feature, or features with a
            common table have different dimensions.
    """
    names = [feature.name for feature in schema.sparse]
    for pattern in config.dims:
        if not any(config.fits(pattern, name) for name in names):
            raise UserError(
                f"embedding.dims: {pattern!r} is no id or bag feature in use; allowed: "
                f"{', '.join(names)}, or a pattern such as '*'{did_you_mean(pattern, names)}"
            )
    widths = {name: config.dim_of(name) for name in names}
    _check_common_tables(schema, widths)
    return widths


def _check_common_tables(schema: Schema, widths: Mapping[str, int]) -> None:
    first: dict[str, str] = {}
    for feature in schema.sparse:
        name = first.setdefault(feature.table_name, feature.name)
        if widths[name] != widths[feature.name]:
            raise UserError(
                f"embedding.dims: {name} has {widths[name]} and {feature.name} "
                f"{widths[feature.name]}, but they share the table {feature.table_name!r}; "
                "allowed: the same for both"
            )
