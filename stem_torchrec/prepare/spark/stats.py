"""``stats.json`` of written splits, counted by Spark: the entries of ``engine/prepared``."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from stem_torchrec.data.dense_scale import DENSE_STATS, Scale
from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.prepare.spark.ids import id_column, values_of
from stem_torchrec.prepare.spark.values import hashed_id
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.encoding import table_owners
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN

_LABEL = (F.count, F.sum)
_SCALE = (F.avg, F.stddev_pop, F.min, F.max)


def stats_of(splits: Mapping[str, DataFrame], schema: Schema) -> dict[str, Any]:
    """Samples, labels and the scales of dense features, one pass over each split."""
    tasks = {task.name: F.col(f"`{task.label_column}`") for task in schema.tasks}
    asked = [F.count("*"), *(count(label) for label in tasks.values() for count in _LABEL)]
    counts: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
    for split, rows in splits.items():
        num_rows, *pairs = (value or 0 for value in _first(rows, asked))
        of_tasks = {name: (pairs[2 * k], pairs[2 * k + 1]) for k, name in enumerate(tasks)}
        counts[split] = num_rows, of_tasks
    by_split = {split: of_tasks for split, (_, of_tasks) in counts.items()}
    total = {name: [sum(of[name][k] for of in by_split.values()) for k in (0, 1)] for name in tasks}
    return {
        "samples": {split: num_rows for split, (num_rows, _) in counts.items()},
        "fields": len(schema.features),
        "tasks": list(tasks),
        "positive_ratio": {name: _ratio(*total[name]) for name in tasks},
        "positive_ratio_by_split": {
            split: {name: _ratio(*found) for name, found in of_tasks.items()}
            for split, of_tasks in by_split.items()
        },
        **_scales(splits["train"], [feature.name for feature in schema.dense]),
        "observed": {name: total[name][0] for name in tasks},
        "observed_by_split": {
            split: {name: observed for name, (observed, _) in of_tasks.items()}
            for split, of_tasks in by_split.items()
        },
    }


def raw_counts(rows: DataFrame, description: Description) -> dict[str, Any]:
    """What the raw files hold: users and items, and the values that hashed ids merge."""
    found: dict[str, Any] = {}
    for key, name in (("users", description.user), ("items", description.item)):
        if name is not None:
            value = F.col(f"`{name}`")
            is_bag = description.feature(name).kind == "bag"
            values = rows.select((F.explode(value) if is_bag else value).alias("value"))
            found[key] = values.where(F.col("value").isNotNull()).distinct().count()
    of_hashes = {}
    for owner in table_owners(description):
        if owner.encoding == "hash":
            assert owner.num_embeddings is not None
            values = values_of(rows, description, owner).distinct()
            is_text = "string" in dict(values.dtypes)["value"]
            ids = hashed_id(F.col("value"), owner.num_embeddings, is_text=is_text)
            row = values.agg(F.count("*"), F.countDistinct(ids)).first()
            assert row is not None
            of_hashes[owner.name] = {
                "values": row[0],
                "ids": row[1],
                "collisions": row[0] - row[1],
            }
    return found | ({"hash": of_hashes} if of_hashes else {})


def unseen_counts(rows: DataFrame, description: Description) -> dict[str, dict[str, int]]:
    """Of valid and test, rows whose value of a feature has no id in its vocabulary."""
    names = [
        feature.name
        for feature in description.features
        if feature.kind == "id" and description.owner(feature).encoding == "vocabulary"
    ]
    if not names:
        return {}
    counted = [
        F.count_if(F.col(f"`{n}`").isNotNull() & (F.col(f"`{id_column(n)}`") == 0)) for n in names
    ]
    found = rows.where(F.col(SPLIT_COLUMN) > 0).groupBy(SPLIT_COLUMN).agg(*counted).collect()
    return {
        SPLITS[split]: dict(zip(names, counts, strict=True)) for split, *counts in sorted(found)
    }


def _scales(rows: DataFrame, names: Sequence[str]) -> dict[str, Any]:
    if not names:
        return {}
    values = {name: F.col(f"`{name}`").cast("double") for name in names}
    known = {name: F.coalesce(F.when(~F.isnan(x), x), F.lit(0.0)) for name, x in values.items()}
    found = _first(rows, [figure(x) for x in known.values() for figure in _SCALE])
    scales = [Scale(*found[k : k + 4]) for k in range(0, len(found), 4)]
    return {DENSE_STATS: {n: s._asdict() for n, s in zip(names, scales, strict=True)}}


def _first(rows: DataFrame, asked: Sequence[Column]) -> list[Any]:
    found = rows.agg(*asked).first()
    assert found is not None
    return list(found)


def _ratio(observed: int, positive: int) -> float | None:
    return positive / observed if observed else None
