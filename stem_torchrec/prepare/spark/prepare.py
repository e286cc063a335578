"""Raw files and their description -> prepared folder: read once, counted and written by Spark."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from stem_torchrec.data.dense_scale import STATS_FILE
from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE
from stem_torchrec.prepare.engine.occupied import refuse_occupied
from stem_torchrec.prepare.engine.prepared import with_identities
from stem_torchrec.prepare.engine.row_hash import HASH_MACROS
from stem_torchrec.prepare.spark.described import described, refuse_unsupported, require_good_rows
from stem_torchrec.prepare.spark.ids import id_column, with_ids, write_vocabulary
from stem_torchrec.prepare.spark.places import spark_address
from stem_torchrec.prepare.spark.placing import order, placed, split_counts, time_after
from stem_torchrec.prepare.spark.raw import RawTable, open_raw_table
from stem_torchrec.prepare.spark.stats import raw_counts, stats_of, unseen_counts
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.encoder import encoder_of
from stem_torchrec.prepare.tables.encoding import prepared_schema, require_schema, table_owners
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN, time_bound, time_cuts
from stem_torchrec.prepare.tables.raw.files import open_raw_files
from stem_torchrec.prepare.tables.row_columns import row_columns
from stem_torchrec.prepare.tables.split_columns import TIME_COLUMN
from stem_torchrec.prepare.tables.splits import TimeSplit
from stem_torchrec.storage.place import Place, remove

_SESSION = {
    "spark.sql.ansi.enabled": "false",  # hashes wrap around
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.csv.parser.columnPruning.enabled": "false",  # lines of too few columns are found
}


def prepare_with_spark(
    spark: SparkSession,
    sources: Sequence[str],
    description: Description,
    out: Place,
    *,
    shuffle_seed: int = 0,
) -> dict[str, Any]:
    """Prepare raw files as described: the folder that ``prepare_files`` makes of them.

    Vocabularies, ids, splits and the order of rows are the same. A split has several files, whose
    rows are in order from one to the next. ``schema.json`` is written last: without it nobody takes
    the folder for a prepared one.

    Args:
        spark: its session is set to UTC and to arithmetic that wraps around.
        sources: files or patterns, read in this order; URLs of whatever Spark reads.
        out: a new or empty folder, which executors and this process reach by the same name.
        shuffle_seed: of the order of train's rows.

    Returns:
        The statistics.

    Raises:
        UserError: the description needs what Spark does not do here; a row is bad, always an end;
            ``out`` is not empty; otherwise as ``prepare_files``.
    """
    require_schema(description)
    refuse_unsupported(description)
    refuse_occupied(out, overwrite=False)
    with _settings(spark):
        raw = open_raw_table(spark, sources, description.format)
        read = _read(raw, description)
        rows = placed(read.rows, description, read.bounds, shuffle_seed)
        counts = split_counts(rows)
        schema = _vocabularies(rows, description, out)
        encoded = with_ids(spark, rows, description, schema, out)
        splits = [split for split in SPLITS if counts[split]]
        for split in splits:
            _write(encoded, description, schema, split, out)
        written = {split: spark.read.parquet(spark_address(out / split)) for split in splits}
        stats = stats_of(written, schema) | {"raw_rows": raw.num_rows, "skipped": {}}
        stats |= raw_counts(rows, description) | read.cuts
        if read.cuts and (unseen := unseen_counts(encoded, description)):
            stats |= {"unseen": unseen}
    (out / ENCODER_FILE).write_text(read.encoder)
    (out / STATS_FILE).write_text(json.dumps(stats, indent=2) + "\n")
    with_identities(schema, out).save(out)
    return stats


class _Read(NamedTuple):
    """Raw files as a description reads them.

    Attributes:
        rows: see ``Described``; kept in memory or on the executors' disks.
        bounds: of a split by time, the first moments of valid and test, and as people read them.
        encoder: ``encoder.json``.
    """

    rows: DataFrame
    bounds: tuple[int, int]
    cuts: dict[str, Any]
    encoder: str


def _read(raw: RawTable, description: Description) -> _Read:
    with _engine() as engine, tempfile.TemporaryDirectory() as folder:
        sample = _Sample(engine, description, Path(folder))
        time_type = sample.time_type(raw)
        found = described(raw, description, time_type)
        encoder = sample.encoder(raw, found.witnesses)
        rows = found.rows.persist()
        require_good_rows(rows)
        bounds = _bounds(engine, rows, description, time_type)
        cuts = {"cuts": time_cuts(engine, bounds, time_type)} if time_type else {}
    return _Read(rows, bounds, cuts, encoder)


class _Sample:
    """The first rows and some more, by which the engine of one machine reads a description."""

    def __init__(
        self, engine: duckdb.DuckDBPyConnection, description: Description, folder: Path
    ) -> None:
        self._engine, self._description, self._folder = engine, description, folder

    def time_type(self, raw: RawTable) -> str:
        """DuckDB's type of the time of the split, empty if there is none; checks the description.

        Raises:
            UserError: it does not fit the raw columns.
        """
        file = raw.sample(F.lit(False), self._folder / "first")
        opened = open_raw_files(self._engine, [file], self._description.format)
        columns = row_columns(self._engine, opened, self._description)
        return columns[TIME_COLUMN].type if TIME_COLUMN in columns else ""

    def encoder(self, raw: RawTable, witnesses: Column) -> str:
        """``encoder.json``; the witnesses make the engine choose what all rows would."""
        file = raw.sample(witnesses, self._folder / "all")
        opened = open_raw_files(self._engine, [file], self._description.format)
        columns = row_columns(self._engine, opened, self._description, of_all_rows=True)
        return encoder_of(opened, self._description, columns).text()


@contextmanager
def _settings(spark: SparkSession) -> Iterator[None]:
    before = {key: spark.conf.get(key) for key in _SESSION}
    for key, value in _SESSION.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        spark.catalog.clearCache()
        for key, old in before.items():
            spark.conf.set(key, str(old))


@contextmanager
def _engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        for macro in HASH_MACROS:
            engine.execute(macro)
        yield engine


def _bounds(
    engine: duckdb.DuckDBPyConnection, rows: DataFrame, description: Description, time_type: str
) -> tuple[int, int]:
    split = description.split
    if not isinstance(split, TimeSplit):
        return 0, 0
    if split.shares is not None:
        first, second = split.shares[:2]
        return time_after(rows, first), time_after(rows, first + second)
    assert split.valid_from is not None
    assert split.test_from is not None
    return (
        time_bound(engine, "valid_from", split.valid_from, time_type),
        time_bound(engine, "test_from", split.test_from, time_type),
    )


def _vocabularies(rows: DataFrame, description: Description, out: Place) -> Schema:
    tables = {}
    for owner in table_owners(description):
        if owner.encoding == "vocabulary":
            tables[owner.name] = write_vocabulary(rows, description, owner, out)
        else:
            assert owner.num_embeddings is not None
            tables[owner.name] = owner.num_embeddings
    remove(out / f".{VOCABULARY_FOLDER}")
    return prepared_schema(description, tables)


def _write(
    rows: DataFrame, description: Description, schema: Schema, split: str, out: Place
) -> None:
    sparse = {feature.name for feature in schema.sparse}
    columns = [
        F.col(f"`{id_column(f.name) if f.name in sparse else f.name}`").alias(f.name)
        for f in schema.features
    ]
    others = [task.label_column for task in schema.tasks]
    others += [name for name in (schema.sample_weight, schema.group) if name]
    columns += [F.col(f"`{name}`") for name in others]
    ordered = order(ordered=description.ordered and split == "train")
    chosen = rows.where(F.col(SPLIT_COLUMN) == SPLITS.index(split)).orderBy(*ordered)
    chosen.select(*columns).write.parquet(spark_address(out / split))
