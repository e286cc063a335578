"""Raw values -> ids: by a vocabulary that is counted in train, by hash, or as they are."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from stem_torchrec.data.parquet_file import open_parquet_file
from stem_torchrec.data.schema import Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.prepare.engine.prepared import COMPRESSION
from stem_torchrec.prepare.spark.places import spark_address
from stem_torchrec.prepare.spark.values import hashed_id
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN
from stem_torchrec.storage.place import Place, in_store, remove

_BATCH_ROWS = 1 << 16


def values_of(rows: DataFrame, description: Description, owner: DescribedFeature) -> DataFrame:
    """The values of all features that share a table, one a row, as ``value``."""
    parts = [
        rows.select(_each(feature).alias("value"))
        for feature in description.features
        if feature.kind != "dense" and description.owner(feature) is owner
    ]
    first, *others = parts
    for other in others:
        first = first.unionAll(other)
    return first.where(F.col("value").isNotNull())


def write_vocabulary(
    rows: DataFrame, description: Description, owner: DescribedFeature, folder: Place
) -> int:
    """Count a table's values in train and write ``vocab/FEATURE.parquet``; the table's rows.

    Executors count and sort, into files whose order is that of the ids; the driver reads them one
    after the other and numbers the values.
    """
    train = rows.where(F.col(SPLIT_COLUMN) == 0)
    counted = values_of(train, description, owner).groupBy("value").agg(F.count("*").alias("count"))
    frequent = counted.where(F.col("count") >= description.min_count)
    parts = folder / f".{VOCABULARY_FOLDER}" / owner.name
    ordered = frequent.orderBy(F.desc("count"), "value")
    ordered.write.mode("overwrite").parquet(spark_address(parts))
    target = folder / VOCABULARY_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    num_values = _number(parts, target / f"{owner.name}.parquet")
    remove(parts)
    return num_values + 1


def with_ids(
    spark: SparkSession, rows: DataFrame, description: Description, schema: Schema, folder: Place
) -> DataFrame:
    """The rows with a column ``id of FEATURE`` for each id and bag feature."""
    for feature, described in zip(schema.features, description.features, strict=True):
        if feature.kind == "dense":
            continue
        assert feature.num_embeddings is not None
        owner, name = description.owner(described), id_column(feature.name)
        kind = "int" if feature.num_embeddings <= 2**31 else "bigint"
        if owner.encoding == "vocabulary":
            file = folder / VOCABULARY_FOLDER / f"{owner.name}.parquet"
            vocabulary = spark.read.parquet(spark_address(file)).select("value", "id")
            rows = _joined(rows, described, vocabulary, name)
            found = F.col(f"`{name}`")
        else:
            found = _direct(rows, described, owner)
        empty = F.array() if feature.kind == "bag" else F.lit(0)
        type_name = f"array<{kind}>" if feature.kind == "bag" else kind
        rows = rows.withColumn(name, F.coalesce(found.cast(type_name), empty.cast(type_name)))
    return rows


def id_column(feature: str) -> str:
    """The column of a feature's ids, beside that of its values."""
    return f"id of {feature}"


def _each(feature: DescribedFeature) -> Column:
    value = F.col(f"`{feature.name}`")
    return F.explode(value) if feature.kind == "bag" else value


def _direct(rows: DataFrame, feature: DescribedFeature, owner: DescribedFeature) -> Column:
    num_embeddings = owner.num_embeddings
    assert num_embeddings is not None
    is_text = "string" in dict(rows.dtypes)[feature.name]

    def one(x: Column) -> Column:
        if owner.encoding == "identity":
            return F.coalesce(x, F.lit(0).cast("bigint"))
        return hashed_id(x, num_embeddings, is_text=is_text)

    value = F.col(f"`{feature.name}`")
    return F.transform(value, one) if feature.kind == "bag" else one(value)


def _joined(
    rows: DataFrame, feature: DescribedFeature, vocabulary: DataFrame, name: str
) -> DataFrame:
    value = F.col(f"`{feature.name}`")
    if feature.kind == "bag":
        vocabulary = _ids_of_bags(rows.select(value.alias("bag")).distinct(), vocabulary)
    ids = vocabulary.select(F.col("value").alias(f"value {name}"), F.col("id").alias(name))
    return rows.join(ids, value == F.col(f"`value {name}`"), "left").drop(f"value {name}")


def _ids_of_bags(bags: DataFrame, vocabulary: DataFrame) -> DataFrame:
    """Distinct lists (``value``) and their ids in the same order (``id``)."""
    each = bags.select("bag", F.posexplode("bag").alias("place", "value"))
    found = each.join(vocabulary, "value", "left")
    pair = F.struct("place", F.coalesce("id", F.lit(0)).alias("id"))
    return found.groupBy(F.col("bag").alias("value")).agg(
        F.sort_array(F.collect_list(pair))["id"].alias("id")
    )


def _number(parts: Place, target: Place) -> int:
    files = sorted((f for f in parts.iterdir() if f.suffix == ".parquet"), key=lambda f: f.name)
    num_values = 0
    with open_parquet_file(files[0]) as first:
        value, count = first.schema_arrow.field("value"), first.schema_arrow.field("count")
    columns = pa.schema([("value", value.type), ("id", pa.int32()), ("count", count.type)])
    where = target.key if in_store(target) else target
    filesystem = target.filesystem if in_store(target) else None
    options = {"compression": COMPRESSION, "write_page_checksum": True}
    with pq.ParquetWriter(where, columns, filesystem=filesystem, **options) as written:
        for batch in _batches(files):
            ids = pa.array(range(num_values + 1, num_values + 1 + len(batch)), pa.int32())
            arrays = [batch["value"], ids, batch["count"]]
            written.write_batch(pa.RecordBatch.from_arrays(arrays, schema=columns))
            num_values += len(batch)
    return num_values


def _batches(files: list[Place]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with open_parquet_file(file) as opened:
            yield from opened.iter_batches(_BATCH_ROWS)
