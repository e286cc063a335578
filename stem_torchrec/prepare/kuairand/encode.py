"""Encode the KuaiRand tables in DuckDB: raw values to ids, rows joined with users and videos.

Tables: ``log``, ``users``, ``videos`` (see ``kuairand_source``); made here: ``vocab_FEATURE``,
``users_encoded``, ``videos_encoded``.
"""

from collections.abc import Sequence

import duckdb

from stem_torchrec.prepare.engine.vocabulary import create_vocabulary
from stem_torchrec.prepare.kuairand.features import RawFeature


def encode(
    connection: duckdb.DuckDBPyConnection,
    features: Sequence[RawFeature],
    train_until: int,
    min_count: int,
) -> dict[str, int]:
    """Create vocabularies and the encoded tables of users and videos; returns the table rows
    (ids, 0 included) per feature."""
    for table, key in (("users", "user_id"), ("videos", "video_id")):
        connection.execute(
            f"CREATE TABLE train_{table} AS SELECT {key}, count(*) AS count FROM log "
            f"WHERE date <= {train_until} GROUP BY {key}"
        )
    rows = {}
    for feature in features:
        rows[feature.name] = feature.num_buckets or create_vocabulary(
            connection, feature.name, _counted(feature, train_until), min_count=min_count
        )
    for table, key, source in (("users", "user_id", "user"), ("videos", "video_id", "video")):
        ids = [f for f in features if f.source == source and f.kind == "id"]
        bags = [f for f in features if f.source == source and f.kind == "bag"]
        columns, joins = _encoded_columns(ids)
        columns += [f"coalesce({bag.name}_of.ids, []) AS {bag.name}" for bag in bags]
        joins += [f"LEFT JOIN ({_encoded_bag(bag)}) {bag.name}_of USING ({key})" for bag in bags]
        if source == "video" and any(f.source == "joined" for f in features):
            columns.append("TRY_CAST(upload_dt AS DATE) AS upload_day")
        connection.execute(
            f"CREATE TABLE {table}_encoded AS SELECT raw.{key}, {', '.join(columns)} "
            f"FROM {table} raw {' '.join(joins)}"
        )
    return rows


def _counted(feature: RawFeature, train_until: int) -> str:
    """Query of the train split's values and their counts."""
    if feature.source == "log":
        return (
            f"SELECT {feature.name} AS value, count(*) AS count FROM log "
            f"WHERE date <= {train_until} GROUP BY ALL"
        )
    table, key = ("users", "user_id") if feature.source == "user" else ("videos", "video_id")
    value = feature.sql
    if feature.kind == "bag":
        value = f"trim(unnest(string_split({feature.sql}, ',')))"
    return f"SELECT {value} AS value, count FROM {table} JOIN train_{table} USING ({key})"


def _encoded_columns(features: Sequence[RawFeature]) -> tuple[list[str], list[str]]:
    columns, joins = [], []
    for feature in features:
        if feature.num_buckets is None:
            vocabulary = f"vocab_{feature.name}"
            columns.append(f"coalesce({vocabulary}.id, 0) AS {feature.name}")
            joins.append(f"LEFT JOIN {vocabulary} ON {vocabulary}.value = raw.{feature.sql}")
        else:
            columns.append(f"{feature.sql} AS {feature.name}")
    return columns, joins


def _encoded_bag(feature: RawFeature) -> str:
    """Query of a video's ids in the order of its raw values; a rare value is id 0."""
    values = f"string_split({feature.sql}, ',')"
    return f"""
        SELECT video_id, list(coalesce(id, 0) ORDER BY place) AS ids
        FROM (
            SELECT video_id, trim(unnest({values})) AS value,
                generate_subscripts({values}, 1) AS place
            FROM videos
        ) LEFT JOIN vocab_{feature.name} USING (value)
        GROUP BY video_id
    """


def rows_of_day(
    features: Sequence[RawFeature], tasks: Sequence[str], group_column: str, date: int
) -> str:
    """Query of one day's rows, columns in the order of ``arrow_schema``."""
    selected, joins = [], []
    for feature in features:
        name, source = feature.name, feature.source
        value = f"raw.{name}"
        if source == "log" and feature.num_buckets is None:
            joins.append(f"LEFT JOIN vocab_{name} ON vocab_{name}.value = raw.{name}")
            value = f"coalesce(vocab_{name}.id, 0)"
        elif source == "joined":
            value = feature.sql
        elif source != "log":
            default = "0" if feature.kind == "id" else "[]"
            value = f"coalesce({source}s_encoded.{name}, {default})"
        sql_type = "INTEGER[]" if feature.kind == "bag" else "INTEGER"
        selected.append(f"CAST({value} AS {sql_type}) AS {name}")
    selected += [f"raw.{task}" for task in tasks]
    selected.append(f'raw.user_id AS "{group_column}"')
    order = ["time_ms", "user_id", "video_id", *tasks]
    return f"""
        SELECT {", ".join(selected)} FROM log raw
        LEFT JOIN users_encoded ON users_encoded.user_id = raw.user_id
        LEFT JOIN videos_encoded ON videos_encoded.video_id = raw.video_id
        {" ".join(joins)}
        WHERE raw.date = {date} ORDER BY {", ".join(f"raw.{column}" for column in order)}
    """
