"""Choose the files of a split that is stored by day."""

import re
from collections.abc import Sequence
from datetime import date
from pathlib import PurePath
from typing import NamedTuple

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


def by_day(files: Sequence[Place], folder: Place) -> dict[date, list[Place]]:
    """The files of every day, in the order of time; a file's day as of ``select_days``.

    Raises:
        UserError: a file has no day, or a day lies in two places beside each other.
    """
    found: dict[date, list[Place]] = {}
    names: dict[tuple[date, PurePath], str] = {}
    for file in files:
        path = relative(file, folder)
        part = _dated_part(path)
        if part is None:
            raise UserError(
                f"{file} has no day in its name; a split by days is expected as "
                "date=2022-04-08/*.parquet or 20220408.parquet"
            )
        found.setdefault(part.day, []).append(file)
        name = part.name if part.is_folder else "files"
        first = names.setdefault((part.day, part.parent), name)
        if name != first:
            raise UserError(f"{str(folder)!r} has {part.day} twice: in {first} and in {name}")
    return dict(sorted(found.items()))


class _Part(NamedTuple):
    """The folder or file of a path that says its day."""

    day: date
    parent: PurePath
    name: str
    is_folder: bool


def _day_of(path: PurePath) -> date | None:
    part = _dated_part(path)
    return part.day if part is not None else None


def _dated_part(path: PurePath) -> _Part | None:
    """Of a path in the split's folder; the innermost folder's day before the file's."""
    folders = [place for place in path.parents if "=" in place.name]
    for place in (*folders, path):
        match = _FIRST.match(place.name)
        if match is not None and (day := parse_day(match[1])) is not None:
            return _Part(day, place.parent, place.name, place is not path)
    return None
