"""Which days of the KuaiRand log are train, valid and test."""

from datetime import datetime
from typing import NamedTuple

import duckdb

from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.options import KuaiRandSplit

_ONE_DAY_EACH = "1k"  # the release whose rows the STEM paper counts


class LastDays(NamedTuple):
    """How many of the last days are valid, and how many after them test."""

    valid: int
    test: int


def last_days(split: KuaiRandSplit, version: str) -> LastDays:
    """Those of a split, ``release`` being that of the release's version (1k, 27k, pure, ...)."""
    one_each = split == "last_2_days" or (split == "release" and version == _ONE_DAY_EACH)
    return LastDays(1, 1) if one_each else LastDays(2, 3)


def split_days(
    connection: duckdb.DuckDBPyConnection,
    train_until: int | None,
    valid_until: int | None,
    last: LastDays,
) -> dict[str, list[int]]:
    """Days of each split, in order; ``last`` are left out of train where no day is given.

    Raises:
        UserError: the log has no rows or a date that is no day, or a split would be empty.
    """
    days = [row[0] for row in connection.execute("SELECT DISTINCT date FROM log").fetchall()]
    days.sort()
    if not days:
        raise UserError("the log files hold no rows")
    for day in days:
        _check_day("date", day)
    found = f"the log has {days[0]} to {days[-1]}"
    if train_until is None and valid_until is None:
        if len(days) <= last.test + last.valid:
            raise UserError(f"train_until, valid_until: needed for a log of few days; {found}")
        train_until = days[-last.test - last.valid - 1]
        valid_until = days[-last.test - 1]
    if train_until is None or valid_until is None:
        raise UserError(f"train_until, valid_until: give both or none; {found}")
    _check_day("train_until", train_until)
    _check_day("valid_until", valid_until)
    if train_until >= valid_until:
        raise UserError(f"train_until: {train_until} is not before valid_until = {valid_until}")
    split_days = {
        "train": [day for day in days if day <= train_until],
        "valid": [day for day in days if train_until < day <= valid_until],
        "test": [day for day in days if day > valid_until],
    }
    for split in SPLITS:
        if not split_days[split]:
            raise UserError(
                f"split {split!r} is empty with train_until = {train_until}, "
                f"valid_until = {valid_until}; {found}"
            )
    return split_days


def _check_day(what: str, day: int) -> None:
    try:
        datetime.strptime(f"{day:08d}", "%Y%m%d")
    except ValueError:
        raise UserError(f"{what}: {day} is no day; expected YYYYMMDD") from None
