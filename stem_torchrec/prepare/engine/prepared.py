"""Write a prepared folder: all of it or nothing, with its schema and statistics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from stem_torchrec.data.dense_scale import DENSE_STATS, STATS_FILE, Scale
from stem_torchrec.data.schema import SPLITS, Feature, Schema, Vocabulary
from stem_torchrec.data.vocabulary_identity import (
    VOCABULARY_FOLDER,
    identity_of,
    vocabulary_file,
)
from stem_torchrec.prepare.engine.building import building
from stem_torchrec.prepare.engine.row_hash import HASH_FUNCTION
from stem_torchrec.prepare.engine.sql import quoted
from stem_torchrec.storage.place import Place

COMPRESSION = "snappy"

_INT32_ROWS = 2**31


@contextmanager
def prepared_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, renamed to ``out`` when the block ends without an error (see ``building``).

    A train, valid and test folder and the vocabulary folder are already in it.

    Raises:
        UserError: as ``building``.
    """
    with building(out, overwrite=overwrite) as made, folders_of_splits(made.prepared):
        yield made.prepared


@contextmanager
def folders_of_splits(prepared: Path) -> Iterator[None]:
    """A train, valid, test and vocabulary folder; those left empty are gone when the block ends."""
    folders = [prepared / name for name in (*SPLITS, VOCABULARY_FOLDER)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    yield
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def arrow_schema(schema: Schema) -> pa.Schema:
    """Column types of a split: ids int32 (int64 if they do not fit), bags lists of those, dense
    and weights float32, labels int8 with nulls, a group that is no feature int64."""
    columns = {feature.name: _feature_type(feature) for feature in schema.features}
    columns |= {task.label_column: pa.int8() for task in schema.tasks}
    if schema.sample_weight:
        columns.setdefault(schema.sample_weight, pa.float32())
    if schema.group:
        columns.setdefault(schema.group, pa.int64())
    return pa.schema(list(columns.items()))


def open_parquet(path: Path, columns: pa.Schema) -> Any:
    """A ``ParquetWriter`` with the settings of every prepared file: a flipped bit is told from a
    value by the checksum of its page."""
    return pq.ParquetWriter(
        path, columns, compression=COMPRESSION, write_statistics=True, write_page_checksum=True
    )


def write_metadata(
    folder: Path,
    schema: Schema,
    *,
    user_column: str | None,
    item_column: str | None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``schema.json`` and ``stats.json`` beside the splits; returns the statistics.

    The schema gets the identities of the vocabularies that are there.

    Args:
        user_column, item_column: columns of the splits whose distinct values are counted, if given.
        extra: further entries of the statistics; they replace computed ones of the same name.
    """
    with_identities(schema, folder).save(folder)
    stats = compute_stats(folder, schema, user_column=user_column, item_column=item_column)
    stats |= dict(extra or {})
    (folder / STATS_FILE).write_text(json.dumps(stats, indent=2) + "\n")
    return stats


def with_identities(schema: Schema, folder: Place) -> Schema:
    """The schema with what tells the ids of its features from others of the same number.

    Vocabularies are those in the folder; ids of other encodings are a function of the raw value.
    """
    of_tables: dict[str, Vocabulary] = {}

    def identified(feature: Feature) -> Feature:
        if feature.encoding == "hash":
            return feature.model_copy(update={"hash_function": HASH_FUNCTION})
        file = vocabulary_file(folder, feature)
        if feature.encoding != "vocabulary" or not file.is_file():
            return feature
        table = feature.table_name
        if table not in of_tables:
            of_tables[table] = identity_of(file)
        return feature.model_copy(update={"vocabulary": of_tables[table]})

    features = tuple(identified(feature) for feature in schema.features)
    return schema.model_copy(update={"features": features})


def compute_stats(
    folder: Path, schema: Schema, *, user_column: str | None, item_column: str | None
) -> dict[str, Any]:
    """Count what the written splits hold.

    Returns:
        ``users``, ``items``, ``samples`` per split, ``fields`` (features), ``tasks`` (names);
        ``positive_ratio`` and ``observed`` (labels that are not null) per task, over all splits
        and ``..._by_split``. A ratio is null where nothing was observed. ``dense``: the scale of
        each dense feature in train.
    """
    labels = {task.name: task.label_column for task in schema.tasks}
    splits, named = _written_splits(folder), {"users": user_column, "items": item_column}
    with duckdb.connect() as connection:
        counts = {split: _count(connection, _rows(folder, [split]), labels) for split in splits}
        distinct = _distinct(connection, _rows(folder, splits), named)
        dense = [feature.name for feature in schema.dense]
        scales = _scales(connection, _rows(folder, ["train"]), dense)
    total = {name: [sum(c[name][k] for c in counts.values()) for k in (0, 1)] for name in labels}
    return {
        **distinct,
        "samples": {split: count["rows"][0] for split, count in counts.items()},
        "fields": len(schema.features),
        "tasks": list(labels),
        "positive_ratio": {name: _ratio(*total[name]) for name in labels},
        "positive_ratio_by_split": {
            split: {name: _ratio(*count[name]) for name in labels}
            for split, count in counts.items()
        },
        **scales,
        "observed": {name: total[name][0] for name in labels},
        "observed_by_split": {
            split: {name: count[name][0] for name in labels} for split, count in counts.items()
        },
    }


def _feature_type(feature: Feature) -> pa.DataType:
    if feature.num_embeddings is None:
        return pa.float32()
    ids = pa.int32() if feature.num_embeddings <= _INT32_ROWS else pa.int64()
    return pa.list_(ids) if feature.kind == "bag" else ids


def _written_splits(folder: Path) -> list[str]:
    return [split for split in SPLITS if any((folder / split).rglob("*.parquet"))]


def written_rows(folder: Path, split: str) -> ds.Dataset | None:
    """A split's rows; None if it was not written."""
    return _rows(folder, [split]) if split in _written_splits(folder) else None


def _rows(folder: Path, splits: list[str]) -> ds.Dataset:
    # An Arrow data set, since DuckDB would read "*" and "[" in a path as a pattern.
    files = [str(path) for split in splits for path in sorted((folder / split).rglob("*.parquet"))]
    return ds.dataset(files, format="parquet")


def _query(
    connection: duckdb.DuckDBPyConnection, rows: ds.Dataset, expressions: list[str]
) -> list[float]:
    connection.register("rows", rows)
    [found] = connection.execute(f"SELECT {', '.join(expressions)} FROM rows").fetchall()
    return [value or 0 for value in found]


def _count(
    connection: duckdb.DuckDBPyConnection, rows: ds.Dataset, labels: Mapping[str, str]
) -> dict[str, list[int]]:
    """Per task [observed labels, positive ones]; ``rows`` holds [number of rows]."""
    expressions = ["count(*)"]
    for column in labels.values():
        expressions += [f"count({quoted(column)})", f"sum({quoted(column)})"]
    rows_found, *pairs = map(int, _query(connection, rows, expressions))
    return {"rows": [rows_found]} | {
        name: pairs[2 * k : 2 * k + 2] for k, name in enumerate(labels)
    }


def _distinct(
    connection: duckdb.DuckDBPyConnection, rows: ds.Dataset, columns: Mapping[str, str | None]
) -> dict[str, int]:
    named = {key: column for key, column in columns.items() if column is not None}
    if not named:
        return {}
    expressions = [f"count(DISTINCT {quoted(column)})" for column in named.values()]
    return dict(zip(named, map(int, _query(connection, rows, expressions)), strict=True))


def _scales(
    connection: duckdb.DuckDBPyConnection, rows: ds.Dataset, columns: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    if not columns:
        return {}
    expressions = []
    for column in columns:
        value = f"coalesce(nullif({quoted(column)}::DOUBLE, 'nan'::DOUBLE), 0)"
        expressions += [f"{name}({value})" for name in ("avg", "stddev_pop", "min", "max")]
    # In one order: sums of floats in another differ in their last digits, and stats.json with them.
    connection.execute("SET threads = 1").fetchall()
    found = _query(connection, rows, expressions)
    scales = [Scale(*map(float, found[k : k + 4])) for k in range(0, len(found), 4)]
    return {DENSE_STATS: {c: s._asdict() for c, s in zip(columns, scales, strict=True)}}


def _ratio(observed: int, positive: int) -> float | None:
    return positive / observed if observed else None
