"""Which split a row belongs to, and where in it: as ``tables/placing`` decides it."""

from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.spark.raw import ROW
from stem_torchrec.prepare.spark.values import below, row_key
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.placing import KEY_COLUMN, SPLIT_COLUMN, STREAMS, first_time_after
from stem_torchrec.prepare.tables.split_columns import PART_COLUMN, TIME_COLUMN
from stem_torchrec.prepare.tables.splits import RandomSplit, TimeSplit


def placed(
    rows: DataFrame, description: Description, bounds: tuple[int, int], seed: int
) -> DataFrame:
    """The rows with ``_split``, the index into ``SPLITS``, and the ``_key`` of train's order.

    Args:
        bounds: of a split by time, the first moments of valid and test.
    """
    split, key = description.split, F.lit(0)
    if isinstance(split, RandomSplit):
        part = _random_part(split)
    elif isinstance(split, TimeSplit):
        time = F.col(TIME_COLUMN)
        part = F.when(time < bounds[0], 0).when(time < bounds[1], 1).otherwise(2)
        key = time
    else:
        part = F.col(PART_COLUMN)
    if description.shuffled:
        key = row_key(F.col(ROW), STREAMS["order"], seed)
    return rows.withColumns({SPLIT_COLUMN: part.cast("tinyint"), KEY_COLUMN: key})


def split_counts(rows: DataFrame) -> dict[str, int]:
    """Rows per split.

    Raises:
        UserError: train is empty.
    """
    counted = dict(rows.groupBy(SPLIT_COLUMN).count().collect())
    found = {name: counted.get(number, 0) for number, name in enumerate(SPLITS)}
    if not found["train"]:
        raise UserError(f"split: train is empty, valid has {found['valid']}, test {found['test']}")
    return found


def order(*, ordered: bool) -> list[str]:
    """Columns by which a split's rows are ordered."""
    return [KEY_COLUMN, ROW] if ordered else [ROW]


def time_after(rows: DataFrame, share: float) -> int:
    """The first time after a share of the rows."""
    time = F.col(TIME_COLUMN)

    def count(low: int, high: int, width: int) -> list[tuple[int, int]]:
        bucket = F.expr(f"({TIME_COLUMN} - {low}) div {width}").alias("bucket")
        inside = rows.where((time >= low) & (time < high))
        return sorted(inside.groupBy(bucket).count().collect())

    found: Any = rows.agg(F.min(time), F.max(time), F.count("*")).first()
    first, last, total = found
    return first_time_after(share * total, first, last, count)


def _random_part(split: RandomSplit) -> Column:
    train, valid, test = split.shares
    chance = row_key(F.col(ROW), STREAMS["split"], split.seed)
    part = F.lit(0 if train == 1 else 2 if test > 0 else 1)
    if train < 1 and test > 0:
        part = F.when(below(chance, train + valid), 1).otherwise(part)
    return F.when(below(chance, train), 0).otherwise(part) if train < 1 else part
