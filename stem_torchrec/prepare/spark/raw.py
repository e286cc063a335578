"""Raw files as one table of Spark, every row with its position in the files."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
from pyspark.sql import functions as F

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.describe import RawFormat
from stem_torchrec.prepare.tables.raw.files import SAMPLE_ROWS

ROW, FILE = "_row", "_file"

_UNREADABLE = {
    "CSV header does not conform": "its columns are not those of the first file",
    "MALFORMED_RECORD": "a line has too few columns or too many",
}
"""What Spark says of a file -> what it means."""


@dataclass(frozen=True)
class RawTable:
    """Files that are read as one, in this order.

    Attributes:
        rows: the raw columns, of delimited files as texts, with ``_row``, from 0 on in the order of
            files and lines, and ``_file``.
        num_rows: in all files.
    """

    files: tuple[str, ...]
    format: RawFormat
    rows: DataFrame
    num_rows: int

    @property
    def columns(self) -> dict[str, str]:
        """Types of Spark by column."""
        return {name: kind for name, kind in self.rows.dtypes if name not in (ROW, FILE)}

    def value(self, column: str) -> Column:
        """A raw column, null where the text means that it is missing."""
        value = F.col(f"`{column}`")
        if self.format.type == "parquet" or not self.format.null_strings:
            return value
        return F.when(~value.isin(*self.format.null_strings), value)

    def sample(self, where: Column, file: Path) -> Path:
        """Write the first rows, and others that are asked for, as one raw file of this format."""
        rows = self.rows.where((F.col(ROW) < SAMPLE_ROWS) | where).orderBy(ROW).drop(ROW, FILE)
        if self.format.type == "parquet":
            pq.write_table(rows.toArrow(), file)
            return file
        with file.open("w", newline="") as stream:
            quote = self.format.quote
            writer = csv.writer(
                stream,
                delimiter=self.format.delimiter,
                quotechar=quote,
                quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
                lineterminator="\n",
            )
            if self.format.header:
                writer.writerow(rows.columns)
            writer.writerows(rows.collect())
        return file


def open_raw_table(spark: SparkSession, sources: Sequence[str], raw_format: RawFormat) -> RawTable:
    """Find the files, and number their rows: one pass over them.

    Args:
        sources: files and patterns, local or of any file system that Spark reads; those of one
            pattern come by name.

    Raises:
        UserError: nothing is found, headers differ, or the format is not one that Spark reads.
    """
    _require_supported(raw_format)
    files = tuple(file for source in sources for file in _files(spark, source))
    rows = _read(spark, files, raw_format)
    placed = rows.select(
        *(F.col(f"`{name}`") for name in rows.columns),
        F.col("_metadata.file_path").alias(FILE),
        F.col("_metadata.file_block_start").alias("_block"),
        F.monotonically_increasing_id().alias("_id"),
    )
    # Rows of a block are numbered one after the other, in whatever order Spark reads the blocks.
    with _readable_errors():
        found = placed.groupBy(FILE, "_block").agg(F.count("*"), F.min("_id")).collect()
    starts, num_rows = [], 0
    turn = {plain_address(file): place for place, file in enumerate(files)}
    for file, block, count, first in sorted(found, key=lambda b: (turn[plain_address(b[0])], b[1])):
        starts.append((file, block, num_rows - first))
        num_rows += count
    if not num_rows:
        raise UserError(f"--source: no rows in {', '.join(files[:3])}")
    blocks = spark.createDataFrame(starts, f"{FILE} string, _block bigint, _start bigint")
    numbered = placed.join(F.broadcast(blocks), [FILE, "_block"]).select(
        *(F.col(f"`{name}`") for name in rows.columns),
        (F.col("_id") + F.col("_start")).alias(ROW),
        FILE,
    )
    return RawTable(files, raw_format, numbered, num_rows)


def _files(spark: SparkSession, source: str) -> list[str]:
    path = source if "://" in source else f"file://{Path(source).absolute()}"
    if "://" not in source and Path(source).exists():
        path = _without_patterns(path)
    try:
        found = sorted(spark.read.format("binaryFile").load(path).inputFiles())
    except Exception as error:  # whatever the file system says
        raise UserError(f"--source: {source!r}: {str(error).splitlines()[0]}") from None
    if not found:
        raise UserError(f"--source: no file {source!r}")
    return found


@contextmanager
def _readable_errors() -> Iterator[None]:
    """Lines that are no rows of these columns are the user's."""
    try:
        yield
    except PySparkException as error:
        for sign, said in _UNREADABLE.items():
            if sign in str(error):
                file = re.search(r"(?:file:|[a-z0-9]+://)\S+", str(error))
                where = plain_address(file[0].rstrip(".")) if file else "--source"
                raise UserError(f"{where}: {said}") from None
        raise


def _without_patterns(path: str) -> str:
    """As Hadoop reads the name of one file, whatever is in it."""
    return "".join(f"\\{mark}" if mark in "\\{}[]*?" else mark for mark in path)


def plain_address(address: str) -> str:
    """The same for every way in which Spark writes the address of a file."""
    return re.sub("^file:/+", "/", unquote(address))


def _read(spark: SparkSession, files: Sequence[str], raw_format: RawFormat) -> DataFrame:
    paths = [_without_patterns(unquote(file)) for file in files]
    if raw_format.type == "parquet":
        return spark.read.parquet(*paths)
    reader = _delimited(spark, raw_format)
    names = list(raw_format.columns or ())
    if raw_format.header:
        names = reader.csv(paths[0]).columns
    schema = ", ".join(f"`{name}` string" for name in names)
    rows = reader.schema(schema).options(mode="FAILFAST", enforceSchema=False).csv(paths)
    return rows.select(*(F.coalesce(F.col(f"`{name}`"), F.lit("")).alias(name) for name in names))


def _delimited(spark: SparkSession, raw_format: RawFormat) -> DataFrameReader:
    quote = raw_format.quote or ""
    return spark.read.options(
        header=raw_format.header,
        sep=raw_format.delimiter,
        quote=quote,
        escape=quote or "\\",
        inferSchema=False,
    )


def _require_supported(raw_format: RawFormat) -> None:
    if len(raw_format.delimiter) > 1:
        raise UserError(
            f"format.delimiter: {raw_format.delimiter!r}; Spark takes one character here"
        )
    if other := {name: kind for name, kind in raw_format.types.items() if kind != "VARCHAR"}:
        name, kind = next(iter(other.items()))
        raise UserError(f"format.types.{name}: {kind!r}; Spark takes VARCHAR alone here")
