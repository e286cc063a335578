"""The constants of transforms and buckets, fitted on the rows of train alone.

They depend on the values, not on threads: sums are those of integers, which have no order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE, encoder_from, write_encoder
from stem_torchrec.prepare.encoder.transforms import Transform
from stem_torchrec.prepare.engine.sql import fetch_one, parquet_relation, quoted
from stem_torchrec.prepare.engine.vocabulary import create_vocabulary, write_vocabulary
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN

_INTERVALS = 100
"""Of ``quantile``: between two bounds lies a hundredth of the values."""

_SUMMED_BITS = 60  # of a summand: 2^60 rows fit the 127 bits of a sum
_MAX_SHIFT = 1000  # a float holds 2^1000


def fitted_features(description: Description) -> list[DescribedFeature]:
    """Features with constants of a fit."""
    return [f for f in description.features if f.transform or f.encoding == "bucket"]


def fit(
    connection: duckdb.DuckDBPyConnection,
    feature: DescribedFeature,
    folder: Path,
    earlier: Path | None = None,
) -> dict[str, Any]:
    """A feature's transform, by the rows of train in the view ``placed``, as JSON.

    Of ``count`` the table ``vocab_FEATURE`` and ``folder/vocab/FEATURE.parquet`` have the counts.

    Args:
        earlier: folder of the days before: their constants hold, their counts are added to.

    Raises:
        UserError: the values do not differ, and the transform needs that they do.
    """
    if feature.transform == "count":
        name = quoted(feature.name)
        counted = (
            f"SELECT {name} AS value, count(*) AS count FROM placed WHERE {SPLIT_COLUMN} = 0 "
            "GROUP BY value"
        )
        if earlier is not None:
            counted += f" UNION ALL {_counts_before(connection, feature, earlier)}"
        create_vocabulary(connection, feature.name, counted, min_count=1)
        write_vocabulary(connection, feature.name, folder / VOCABULARY_FOLDER)
        return Transform("count").content()
    if feature.transform == "log1p":
        return Transform("log1p").content()
    if earlier is not None:
        return _fitted_before(feature, earlier).content()
    values = _Values.of_train(connection, feature)
    if feature.transform == "standard":
        return _standard(connection, values).content()
    if feature.transform == "quantile":
        return _quantiles(connection, values).content()
    assert feature.num_embeddings is not None
    return _buckets(connection, values, feature.num_embeddings - 1).content()


def keep_transforms(folder: Path, fitted: Mapping[str, Transform]) -> None:
    """Put the transforms into ``folder/encoder.json``, by feature."""
    file = folder / ENCODER_FILE
    encoder = encoder_from(file.read_bytes(), str(file))
    features = tuple(replace(f, transform=fitted.get(f.name)) for f in encoder.features)
    write_encoder(replace(encoder, features=features), folder)


def _fitted_before(feature: DescribedFeature, earlier: Path) -> Transform:
    file = earlier / ENCODER_FILE
    [found] = encoder_from(file.read_bytes(), str(file)).only([feature.name], str(file)).features
    if found.transform is None:
        raise UserError(f"{file}: {feature.name}: has no transform")
    return found.transform


def _counts_before(
    connection: duckdb.DuckDBPyConnection, feature: DescribedFeature, earlier: Path
) -> str:
    """Query of the counts of the days before, whose values are of the column's type."""
    file = earlier / VOCABULARY_FOLDER / f"{feature.name}.parquet"
    of_type = fetch_one(connection, f"SELECT typeof({quoted(feature.name)}) FROM rows LIMIT 1")[0]
    return f"SELECT value::{of_type} AS value, count FROM {parquet_relation(file)}"


class _Values(NamedTuple):
    """The numbers of a feature in train.

    Attributes:
        query: gives them as ``x``, without missing ones.
    """

    query: str
    num_values: int
    lowest: float
    highest: float

    @classmethod
    def of_train(
        cls, connection: duckdb.DuckDBPyConnection, feature: DescribedFeature
    ) -> "_Values":
        name = quoted(feature.name)
        query = f"SELECT {name} AS x FROM placed WHERE {SPLIT_COLUMN} = 0 AND NOT isnan({name})"
        asked = f"SELECT count(*), min(x), max(x) FROM ({query})"
        num_values, lowest, highest = fetch_one(connection, asked)
        if not num_values or lowest == highest:
            key, what = (
                ("transform", feature.transform)
                if feature.transform
                else ("encoding", feature.encoding)
            )
            found = f"always {lowest:g}" if num_values else "always missing"
            raise UserError(
                f"features.{feature.name}.{key}: {what!r} needs two values or more, but in train "
                f"the column is {found}; leave the feature out"
            )
        return cls(query, num_values, lowest, highest)


def _standard(connection: duckdb.DuckDBPyConnection, values: _Values) -> Transform:
    mean = _mean(connection, values, "x", max(abs(values.lowest), abs(values.highest)))
    farthest = max(mean - values.lowest, values.highest - mean)
    squared = f"((x - {_number(mean)}) * (x - {_number(mean)}))"
    variance = _mean(connection, values, squared, farthest**2)
    return Transform("standard", mean=mean, deviation=math.sqrt(variance))


def _mean(
    connection: duckdb.DuckDBPyConnection, values: _Values, sql: str, highest: float
) -> float:
    """The mean of an expression over ``x`` that lies within ``highest`` of 0."""
    shift = min(_SUMMED_BITS - math.frexp(highest)[1], _MAX_SHIFT)
    scaled = f"sum(({sql} * {_number(2.0**shift)})::HUGEINT)"
    total = int(fetch_one(connection, f"SELECT {scaled} FROM ({values.query})")[0])
    return math.ldexp(total / values.num_values, -shift)


def _quantiles(connection: duckdb.DuckDBPyConnection, values: _Values) -> Transform:
    """Bounds that differ; one that is several quantiles lies in their middle."""
    shares: dict[float, list[float]] = {}
    last = values.num_values - 1
    places = [round(k * last / _INTERVALS) for k in range(_INTERVALS + 1)]
    for k, value in enumerate(_at(connection, values, places)):
        shares.setdefault(value, []).append(k / _INTERVALS)
    middles = tuple(sum(found) / len(found) for found in shares.values())
    return Transform("quantile", bounds=tuple(shares), shares=middles)


def _buckets(connection: duckdb.DuckDBPyConnection, values: _Values, num_buckets: int) -> Transform:
    """Buckets of as many values each, as far as equal values let them."""
    places = [-(-k * values.num_values // num_buckets) for k in range(1, num_buckets)]
    bounds = {*_at(connection, values, [p for p in places if p < values.num_values])}
    if values.lowest in bounds:  # which would leave the first bucket empty
        above = f"SELECT min(x) FROM ({values.query}) WHERE x > {_number(values.lowest)}"
        bounds = bounds - {values.lowest} | {fetch_one(connection, above)[0]}
    return Transform("bucket", bounds=tuple(sorted(bounds)))


def _at(
    connection: duckdb.DuckDBPyConnection, values: _Values, places: Sequence[int]
) -> list[float]:
    """The values at places of their order, the first being 0."""
    if not places:
        return []
    ordered = f"SELECT x, row_number() OVER () - 1 AS place FROM ({values.query} ORDER BY x)"
    wanted = ", ".join(map(str, sorted({*places})))
    found = connection.execute(f"SELECT place, x FROM ({ordered}) WHERE place IN ({wanted})")
    by_place = dict(found.fetchall())
    return [by_place[place] for place in places]


def _number(value: float) -> str:
    """A float in SQL, to the last bit."""
    return f"'{value!r}'::DOUBLE"
