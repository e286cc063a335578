"""The encoder of KuaiRand's features, for rows of the log with their user's and video's columns."""

from collections.abc import Sequence

from stem_torchrec.prepare.encoder.definition import EncodedFeature, Encoder, Input
from stem_torchrec.prepare.engine.canonical_values import is_integer_sql
from stem_torchrec.prepare.engine.sql import literal, quoted
from stem_torchrec.prepare.kuairand.features import RawFeature
from stem_torchrec.prepare.tables.describe import RawFormat

KEYS = ("user_id", "video_id")


def encoder_of(features: Sequence[RawFeature]) -> Encoder:
    """What encodes rows with the raw columns of log, users and videos side by side.

    Where a user or a video is not known, its columns are null; ids are 0 then.
    """
    raw_format = RawFormat()
    encoded = tuple(_encoded(feature) for feature in features)
    reads = dict.fromkeys(column for feature in encoded for column in feature.reads)
    return Encoder(
        tuple(Input(name, "VARCHAR") for name in reads),
        encoded,
        raw_format.null_strings,
        raw_format.model_dump(mode="json"),
    )


def _encoded(feature: RawFeature) -> EncodedFeature:
    sql, wrong, fault = feature.flat_sql or feature.sql, None, "''"
    if feature.name in KEYS:
        key = quoted(feature.name)
        sql = f"TRY_CAST({key} AS BIGINT)"
        wrong = f"NOT {is_integer_sql(key)}"
        fault = (
            f"concat({literal(f'column {feature.name!r}: ')}, left({key}, 80), ' is no integer')"
        )
    elif feature.kind == "bag":
        sql = f"[trim(v) for v in string_split({sql}, ',')]"
    is_bucket = feature.num_buckets is not None
    return EncodedFeature(
        name=feature.name,
        kind=feature.kind,
        encoding="direct" if is_bucket else "vocabulary",
        sql=sql,
        reads=(*feature.columns, *(("date",) if feature.source == "joined" else ())),
        wrong=wrong,
        fault=fault,
        table=None if is_bucket else feature.name,
        num_embeddings=feature.num_buckets,
        plain=None if is_bucket or feature.kind == "bag" else feature.name,
        plain_text=not is_bucket and feature.kind == "id" and feature.name not in KEYS,
    )
