"""A range of days, as the config names it."""

import re
from datetime import date
from typing import NamedTuple

_DAY = re.compile(r"(\d{4})(-?)(\d{2})\2(\d{2})")


class Days(NamedTuple):
    """``first`` to ``last``, both included."""

    first: date
    last: date


def parse_days(text: str) -> Days:
    """``2022-04-08:2022-04-21`` or one day; dashes may be left out.

    Raises:
        ValueError: it is neither, or ends before it begins.
    """
    first, colon, last = text.partition(":")
    found = [parse_day(part) for part in (first, last if colon else first)]
    if None in found:
        raise ValueError("expected a day such as 2022-04-08, or FIRST:LAST, both included")
    days = Days(*(day for day in found if day is not None))
    if days.last < days.first:
        raise ValueError("the last day lies before the first")
    return days


def parse_day(text: str) -> date | None:
    """``2022-04-08`` or ``20220408``; None for anything else."""
    match = _DAY.fullmatch(text)
    try:
        return date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None
