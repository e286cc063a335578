"""Raw values of the view ``placed`` -> ids: by vocabulary, by hash, or as they are."""

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import ValidationError

from stem_torchrec.data.schema import SPLITS, Feature, Schema, Task
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.transforms import Transform
from stem_torchrec.prepare.engine.row_hash import hashed_id_sql
from stem_torchrec.prepare.engine.sql import fetch_one, quoted
from stem_torchrec.prepare.engine.vocabulary import create_vocabulary, vocabulary_table
from stem_torchrec.prepare.tables.describe import (
    GROUP_COLUMN,
    WEIGHT_COLUMN,
    DescribedFeature,
    Description,
)
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN


def table_rows(
    connection: duckdb.DuckDBPyConnection, description: Description, owner: DescribedFeature
) -> int:
    """Rows of a feature's table; counts its vocabulary in train if it has one."""
    if owner.encoding != "vocabulary":
        assert owner.num_embeddings is not None
        return owner.num_embeddings
    counted = counted_values(description, owner, f"WHERE {SPLIT_COLUMN} = 0")
    return create_vocabulary(connection, owner.name, counted, min_count=description.min_count)


def integer_columns(connection: duckdb.DuckDBPyConnection) -> set[str]:
    """Columns of ``rows`` that hold integers, or lists of them."""
    found = connection.execute("DESCRIBE rows").fetchall()
    return {name for name, type_name, *_ in found if type_name.removesuffix("[]") == "BIGINT"}


def table_owners(description: Description) -> list[DescribedFeature]:
    """Features with a table of their own."""
    return [f for f in description.features if f.kind != "dense" and f.table is None]


def counted_values(
    description: Description, owner: DescribedFeature, where: str = "", by: str | None = None
) -> str:
    """Query of the values and their counts of all features that share a table.

    Args:
        by: SQL of a further column by which they are counted.
    """
    further = f", {by}" if by else ""
    parts = []
    for feature in description.features:
        if feature.kind != "dense" and description.owner(feature) is owner:
            value = quoted(feature.name)
            value = f"unnest({value})" if feature.kind == "bag" else value
            parts.append(f"SELECT {value} AS value{further} FROM placed {where}")
    return f"SELECT *, count(*) AS count FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL"


def count_values(connection: duckdb.DuckDBPyConnection, feature: DescribedFeature) -> int:
    """Distinct raw values of a feature in all splits."""
    name = quoted(feature.name)
    value = f"unnest({name})" if feature.kind == "bag" else name
    query = f"SELECT count(value) FROM (SELECT DISTINCT {value} AS value FROM placed)"
    return int(fetch_one(connection, query)[0])


def count_collisions(
    connection: duckdb.DuckDBPyConnection,
    description: Description,
    owner: DescribedFeature,
) -> dict[str, int]:
    """Of a hashed table: distinct values, distinct ids, and the difference."""
    assert owner.num_embeddings is not None
    is_integer = owner.name in integer_columns(connection)
    hashed = hashed_id_sql("value", owner.num_embeddings, is_integer=is_integer)
    found, ids = fetch_one(
        connection,
        f"SELECT count(*), count(DISTINCT id) FROM (SELECT {hashed} AS id "
        f"FROM ({counted_values(description, owner)}) WHERE value IS NOT NULL)",
    )
    return {"values": found, "ids": ids, "collisions": found - ids}


def count_unseen(
    connection: duckdb.DuckDBPyConnection, description: Description
) -> dict[str, dict[str, int]]:
    """Rows of valid and of test whose value has no id, as it is rare in train or not there, by
    feature; of features of one value with a vocabulary."""
    names = [
        feature.name
        for feature in description.features
        if feature.kind == "id" and description.owner(feature).encoding == "vocabulary"
    ]
    if not names:
        return {}
    counted = [
        f"count(*) FILTER ({quoted(name)} IS NOT NULL AND {quoted(name)} NOT IN "
        f"(SELECT value FROM {vocabulary_table(description.owner(feature).name)}))"
        for name in names
        for feature in [description.feature(name)]
    ]
    rows = connection.execute(
        f"SELECT {SPLIT_COLUMN}, {', '.join(counted)} FROM placed WHERE {SPLIT_COLUMN} > 0 "
        "GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return {SPLITS[split]: dict(zip(names, found, strict=True)) for split, *found in rows}


def prepared_schema(description: Description, rows: Mapping[str, int]) -> Schema:
    """The schema of the folder; ``rows`` of each table by its owner."""
    features = []
    for feature in description.features:
        sparse: dict[str, Any] = {}
        if feature.kind != "dense":
            owner = description.owner(feature)
            sparse = {"num_embeddings": rows[owner.name], "encoding": owner.encoding}
            sparse |= {"table": feature.table, "pooling": feature.pooling}
        features.append(Feature(name=feature.name, kind=feature.kind, side=feature.side, **sparse))
    return Schema(
        features=tuple(features),
        tasks=tuple(Task(name=task) for task in description.labels),
        sample_weight=WEIGHT_COLUMN if description.sample_weight is not None else None,
        group=GROUP_COLUMN if description.group is not None else None,
    )


def require_schema(description: Description) -> None:
    """Refuse what no schema can hold, before any row is read.

    Raises:
        UserError: a task's name is not allowed, no feature is an id or a bag, two tables would
            have one name, or bags of one table differ in pooling.
    """
    try:
        prepared_schema(description, {owner.name: 2 for owner in table_owners(description)})
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        where = (
            f"labels: task {first['input']!r}" if error.title == Task.__name__ else "description"
        )
        raise UserError(f"{where}: {reason}") from None


def encoded_rows(
    connection: duckdb.DuckDBPyConnection, description: Description, schema: Schema, split: int
) -> str:
    """Query of a split's rows, columns in the order of ``arrow_schema``, without an order; those of
    a transform as the numbers that it takes."""
    integers = integer_columns(connection)
    selected, joins = [], []
    for feature, described in zip(schema.features, description.features, strict=True):
        name, owner = quoted(feature.name), description.owner(described)
        value = f"placed.{name}"
        if described.transform == "count":
            table = quoted(f"counts of {feature.name}")
            counts = vocabulary_table(feature.name)
            joins.append(f"LEFT JOIN {counts} {table} ON {table}.value = {value}")
            value = f"coalesce({table}.count, 0)::DOUBLE AS {name}"
        if feature.kind == "dense" or owner.encoding == "bucket":
            selected.append(value)
            continue
        assert feature.num_embeddings is not None
        sql_type = "INTEGER" if feature.num_embeddings <= 2**31 else "BIGINT"
        type_name = sql_type + "[]" * (feature.kind == "bag")
        default = "[]" if feature.kind == "bag" else "0"
        if owner.encoding == "vocabulary":
            # One table may serve several features: each joins it under a name of its own.
            table = quoted(f"ids of {feature.name}")
            ids = (
                _bag_table(feature.name) if feature.kind == "bag" else vocabulary_table(owner.name)
            )
            joins.append(f"LEFT JOIN {ids} {table} ON {table}.value = {value}")
            value = f"{table}.id"
        else:
            value = direct_ids(value, described, owner, feature.name in integers)
        selected.append(f"coalesce({value}, {default})::{type_name} AS {name}")
    others = [quoted(task.label_column) for task in schema.tasks]
    others += [quoted(name) for name in (schema.sample_weight, schema.group) if name]
    selected += [f"placed.{name}" for name in others]
    return (
        f"SELECT {', '.join(selected)} FROM placed {' '.join(joins)} "
        f"WHERE placed.{SPLIT_COLUMN} = {split}"
    )


def with_transforms(rows: pa.Table, transforms: Mapping[str, Transform]) -> pa.Table:
    """The rows of ``encoded_rows`` with what the transforms give, by column."""
    for name, transform in transforms.items():
        place, values = rows.column_names.index(name), rows.column(name).combine_chunks()
        made = transform(values)
        made = made.cast(pa.int32()) if transform.name == "bucket" else made
        rows = rows.set_column(place, name, made)
    return rows


def encode_bags(
    connection: duckdb.DuckDBPyConnection, description: Description, feature: DescribedFeature
) -> None:
    """Create the table of a vocabulary bag's distinct lists (``value``) and their ids (``id``, a
    list in the same order)."""
    name = quoted(feature.name)
    vocabulary = vocabulary_table(description.owner(feature).name)
    connection.execute(
        f"""
        CREATE TABLE {_bag_table(feature.name)} AS
        SELECT bag AS value, list(coalesce(id, 0) ORDER BY place) AS id
        FROM (
            SELECT bag, unnest(bag) AS value, generate_subscripts(bag, 1) AS place
            FROM (SELECT DISTINCT {name} AS bag FROM placed)
        ) LEFT JOIN {vocabulary} USING (value)
        GROUP BY bag
        """
    )


def _bag_table(feature: str) -> str:
    return quoted(f"bags_{feature}")


def direct_ids(
    value: str, feature: DescribedFeature, owner: DescribedFeature, is_integer: bool
) -> str:
    """SQL of ids that need no vocabulary: one, or a list's."""
    if feature.kind == "bag":
        return f"[coalesce({_direct_id('v', owner, is_integer)}, 0) for v in {value}]"
    return _direct_id(value, owner, is_integer)


def _direct_id(value: str, owner: DescribedFeature, is_integer: bool) -> str:
    assert owner.num_embeddings is not None
    if owner.encoding == "identity":
        return value
    return hashed_id_sql(value, owner.num_embeddings, is_integer=is_integer)
