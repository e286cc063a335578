"""The encoder of described files: the columns that their rows were read with, as SQL to be kept."""

from collections.abc import Mapping

from stem_torchrec.prepare.encoder.definition import EncodedFeature, Encoder, Encoding, Input
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.encoding import direct_ids
from stem_torchrec.prepare.tables.raw.files import RawFiles


def encoder_of(raw: RawFiles, description: Description, columns: Mapping[str, Column]) -> Encoder:
    """What encodes further rows as those of ``raw`` are encoded.

    Args:
        columns: those that fit all rows of ``raw``.
    """
    used = [columns[feature.name] for feature in description.features]
    faults = raw.wrong_types({name for column in used for name in column.typed})
    reads = {name for column in used for name in column.reads}
    values = raw.typed_values()
    return Encoder(
        tuple(
            Input(name, type_name, faults.get(name), values.get(name))
            for name, type_name in raw.columns.items()
            if name in reads
        ),
        tuple(
            _encoded(description, feature, columns[feature.name])
            for feature in description.features
        ),
        description.format.null_strings if description.format.type == "delimited" else (),
        description.format.model_dump(mode="json"),
    )


def _encoded(description: Description, feature: DescribedFeature, column: Column) -> EncodedFeature:
    owner, sql, table = description.owner(feature), column.later or column.sql, None
    encoding = _encoding(feature, owner)
    if encoding == "direct":
        sql = direct_ids(sql, feature, owner, is_integer=False)
    elif encoding in ("vocabulary", "count"):
        table = owner.name
    return EncodedFeature(
        name=feature.name,
        kind=feature.kind,
        encoding=encoding,
        sql=sql,
        reads=tuple(sorted(column.reads)),
        wrong=column.wrong,
        fault=column.fault or "''",
        table=table,
        num_embeddings=owner.num_embeddings if encoding in ("direct", "bucket") else None,
        plain=next(iter(column.reads)) if table is not None and column.is_plain else None,
        plain_text=table is not None and column.is_plain_text,
    )


def _encoding(feature: DescribedFeature, owner: DescribedFeature) -> Encoding:
    if feature.kind == "dense":
        return "count" if feature.transform == "count" else "dense"
    if owner.encoding in ("hash", "identity"):
        return "direct"
    return "bucket" if owner.encoding == "bucket" else "vocabulary"
