"""The table ``rows`` -> the view ``placed``: which split a row belongs to, and where in it."""

from collections.abc import Callable, Iterable
from typing import Any

import duckdb

from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.row_hash import row_key_sql
from stem_torchrec.prepare.engine.sql import fetch_one, literal
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.expressions import TIME_TYPES
from stem_torchrec.prepare.tables.split_columns import (
    DAY_COLUMN,
    PART_COLUMN,
    TIME_COLUMN,
    time_sql,
)
from stem_torchrec.prepare.tables.splits import DaySplit, Moment, RandomSplit, TimeSplit

SPLIT_COLUMN, KEY_COLUMN = "_split", "_key"
ROW_COLUMN, CHANCE_COLUMN = "_row", "_chance"

STREAMS = {"split": 0, "order": 1}
# Buckets per pass of the search for a quantile: 5 passes find one among all 64-bit numbers.
_BUCKETS = 2**13


def place_rows(
    connection: duckdb.DuckDBPyConnection,
    description: Description,
    columns: dict[str, Column],
    seed: int,
    *,
    needs_train: bool = True,
) -> dict[str, Any]:
    """Create the view ``placed`` of ``rows``.

    Bad rows are left out. ``_row`` is the position in the files, ``_split`` the index into
    ``SPLITS``; rows of a split are in the order of ``_key`` where there is one (train of a shuffled
    or time-ordered set), else, and among equal keys, of ``_row``. Split and key depend on a row's
    position, its values and the seeds, not on threads. Working them out anew in every scan costs
    less than a copy of the table that holds them.

    Args:
        needs_train: refuse a train split without rows.

    Returns:
        Rows per split and, of a split by time, ``cuts``: its bounds as texts; of a split by day
        ``days`` (see ``days_of_splits``).

    Raises:
        UserError: train is empty, or a bound is no time.
    """
    split, key, chance, cuts = description.split, None, None, {}
    if isinstance(split, RandomSplit):
        part, chance = _random_part(split), row_key_sql(STREAMS["split"], split.seed)
    elif isinstance(split, DaySplit):
        part = _day_part(split)
    elif isinstance(split, TimeSplit):
        bounds = _bounds(connection, split, columns[TIME_COLUMN])
        part, key = _time_part(bounds), TIME_COLUMN
        cuts = time_cuts(connection, bounds, columns[TIME_COLUMN].type)
    else:
        part = PART_COLUMN
    if description.shuffled:
        key = row_key_sql(STREAMS["order"], seed)
    made = [f"rowid AS {ROW_COLUMN}", f"{part} AS {SPLIT_COLUMN}"]
    made += [f"{key} AS {KEY_COLUMN}"] if key else []
    # A column of its own: in the branches of a CASE DuckDB would work it out again.
    source = f"(SELECT *, rowid, {chance} AS {CHANCE_COLUMN} FROM rows)" if chance else "rows"
    connection.execute(
        f"CREATE VIEW placed AS SELECT {', '.join(['*', *made])} FROM {source} WHERE _bad IS NULL"
    )
    counted = dict(
        connection.execute(f"SELECT {SPLIT_COLUMN}, count(*) FROM placed GROUP BY ALL").fetchall()
    )
    found = {name: counted.get(number, 0) for number, name in enumerate(SPLITS)}
    if needs_train and not found["train"]:
        raise UserError(f"split: train is empty, valid has {found['valid']}, test {found['test']}")
    if isinstance(split, DaySplit):
        return found | {"days": days_of_splits(connection)}
    return found | ({"cuts": cuts} if cuts else {})


def days_of_splits(connection: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The days of each split in their order, as ``placed`` has them; of a split by day."""
    found = connection.execute(
        f"SELECT {SPLIT_COLUMN}, {DAY_COLUMN}::VARCHAR FROM placed GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return {
        name: [day for split, day in found if split == number] for number, name in enumerate(SPLITS)
    }


def _day_part(split: DaySplit) -> str:
    cases = [
        f"WHEN {DAY_COLUMN} BETWEEN DATE '{days.first}' AND DATE '{days.last}' THEN {number}"
        for number, name in ((1, "valid"), (2, "test"))
        for days in split.ranges(name)
    ]
    return f"(CASE {' '.join(cases)} ELSE 0 END)::TINYINT" if cases else "0::TINYINT"


def _random_part(split: RandomSplit) -> str:
    train, valid, test = split.shares
    # Floats below 1 times 2^64 are exact; a share of 1 is left to ELSE.
    cases = [f"WHEN {CHANCE_COLUMN} < {int(train * 2**64)}::UBIGINT THEN 0"] if train < 1 else []
    if train < 1 and test > 0:
        cases.append(f"WHEN {CHANCE_COLUMN} < {int((train + valid) * 2**64)}::UBIGINT THEN 1")
    last = 0 if train == 1 else 2 if test > 0 else 1
    return f"(CASE {' '.join(cases)} ELSE {last} END)::TINYINT" if cases else f"{last}::TINYINT"


def _bounds(
    connection: duckdb.DuckDBPyConnection, split: TimeSplit, time: Column
) -> tuple[int, int]:
    """The first moments of valid and test, as ``_time`` holds them."""
    if split.shares is not None:
        valid_from = _first_time_after(connection, split.shares[0])
        test_from = _first_time_after(connection, split.shares[0] + split.shares[1])
    else:
        assert split.valid_from is not None
        assert split.test_from is not None
        valid_from = time_bound(connection, "valid_from", split.valid_from, time.type)
        test_from = time_bound(connection, "test_from", split.test_from, time.type)
    if valid_from > test_from:
        raise UserError(f"split.valid_from: {split.valid_from} is after {split.test_from}")
    return valid_from, test_from


def time_cuts(
    connection: duckdb.DuckDBPyConnection, bounds: tuple[int, int], type_name: str
) -> dict[str, int | str]:
    """Bounds as people read them: integers, or moments of UTC."""
    if type_name not in TIME_TYPES:
        return dict(zip(("valid_from", "test_from"), bounds, strict=True))
    make = "make_timestamp_ns" if type_name == "TIMESTAMP_NS" else "make_timestamp"
    shown = [fetch_one(connection, f"SELECT {make}({bound})::VARCHAR")[0] for bound in bounds]
    return dict(zip(("valid_from", "test_from"), shown, strict=True))


def _time_part(bounds: tuple[int, int]) -> str:
    valid_from, test_from = bounds
    return (
        f"(CASE WHEN {TIME_COLUMN} < {valid_from} THEN 0 WHEN {TIME_COLUMN} < {test_from} THEN 1 "
        "ELSE 2 END)::TINYINT"
    )


def time_bound(
    connection: duckdb.DuckDBPyConnection, key: str, value: Moment, type_name: str
) -> int:
    """A bound of the description as the number that ``_time`` holds; without a zone it is UTC."""
    if type_name in TIME_TYPES:  # by way of a zone, for a cast to others drops an offset
        sql = f"({literal(str(value))}::TIMESTAMPTZ)::TIMESTAMP"
        sql = time_sql(f"({sql})::TIMESTAMP_NS" * (type_name == "TIMESTAMP_NS") or sql, type_name)
    else:
        sql = time_sql(f"{literal(str(value))}::{type_name}", type_name)
    try:
        return int(fetch_one(connection, f"SELECT {sql}")[0])
    except duckdb.ConversionException:
        raise UserError(f"split.{key}: '{value}' is no {type_name}, the type of the time") from None


def _first_time_after(connection: duckdb.DuckDBPyConnection, share: float) -> int:
    where = "WHERE _bad IS NULL"

    def count(low: int, high: int, width: int) -> list[tuple[int, int]]:
        bucket = f"({TIME_COLUMN} - {low}) // {width}"
        inside = f"{where} AND {TIME_COLUMN} >= {low} AND {TIME_COLUMN} < {high}"
        return connection.execute(
            f"SELECT {bucket} AS bucket, count(*) FROM rows {inside} GROUP BY ALL ORDER BY ALL"
        ).fetchall()

    first, last, total = fetch_one(
        connection, f"SELECT min({TIME_COLUMN}), max({TIME_COLUMN}), count(*) FROM rows {where}"
    )
    return first_time_after(share * total, first, last, count)


def first_time_after(
    num_rows: float,
    first: int,
    last: int,
    count: Callable[[int, int, int], Iterable[tuple[int, int]]],
) -> int:
    """The smallest number that the times of at least so many rows lie below.

    Counts in buckets that grow narrower, each pass a scan of one column in constant memory.

    Args:
        first, last: of all times.
        count: (low, high, width) -> the buckets of this width in [low, high) that are not empty,
            counted from 0, and their rows, in order.
    """
    low, high, wanted, below = first, last + 1, num_rows - 1e-6, 0
    while high - low > 1:  # the bound lies in (low, high]; `below` rows are under low
        width = -(-(high - low) // _BUCKETS)
        for number, rows in count(low, high, width):
            if below + rows >= wanted:
                low += number * width
                high = min(low + width, high)
                break
            below += rows
        else:
            return int(high)
    return int(high)


def order_sql(*, ordered: bool) -> str:
    """ORDER BY of a split's rows; joins do not keep the order in which they are stored."""
    return f"ORDER BY {KEY_COLUMN}, {ROW_COLUMN}" if ordered else f"ORDER BY {ROW_COLUMN}"
