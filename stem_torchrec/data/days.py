"""Choose the files of a split that is stored by day."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import PurePath

from stem_torchrec.config.days import Days, parse_day
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, relative

_FIRST = re.compile(r"(?:\w+=)?(\d{4}-?\d{2}-?\d{2})(?!\d)")


def select_days(files: Sequence[Place], folder: Place, days: Days) -> list[Place]:
    """The files of the days, in the same order.

    A file's day is that of its folder (``date=2022-04-08/any.parquet``, whatever the key is called)
    or the one that its name begins with (``20220408.parquet``, ``2022-04-08-part-0.parquet``).

    Raises:
        UserError: a file has no day, or no file is of the days.
    """
    dated = [(file, _day_of(relative(file, folder))) for file in files]
    for file, day in dated:
        if day is None:
            raise UserError(
                f"data.days: {file} has no day in its name; files are expected as "
                "20220408.parquet or date=2022-04-08/*.parquet"
            )
    found = [file for file, day in dated if day is not None and days.first <= day <= days.last]
    if not found:
        there = sorted({str(day) for _, day in dated})
        listed = ", ".join(there if len(there) <= 10 else [*there[:5], "...", *there[-5:]])
        raise UserError(
            f"data.days: {str(folder)!r} has no day of {days.first}:{days.last}; it has {listed}"
        )
    return found


def _day_of(path: PurePath) -> date | None:
    """The day of a path in the split's folder; the innermost folder's before the file's."""
    folders = [part for part in reversed(path.parts[:-1]) if "=" in part]
    for part in (*folders, path.name):
        match = _FIRST.match(part)
        if match is not None and (day := parse_day(match[1])) is not None:
            return day
    return None
