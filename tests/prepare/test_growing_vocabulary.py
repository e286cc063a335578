"""Vocabularies counted day by day, against a plain count in Python."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from stem_torchrec.prepare.engine.growing_vocabulary import (
    CountedBefore,
    grow_vocabulary,
    write_rare,
)
from stem_torchrec.prepare.engine.vocabulary import write_vocabulary

Day = list[int]
Values = dict[str, int]

DAYS = st.lists(st.lists(st.integers(0, 12), max_size=15), min_size=1, max_size=4)


def counted(days: Sequence[Day], first: int, kind: str) -> str:
    """Query of the values of consecutive days."""
    rows = [
        f"({value}, DATE '2024-01-{first + number + 1:02}')"
        for number, day in enumerate(days)
        for value in day
    ]
    rows = rows or ["(NULL, NULL)"]
    return (
        f"SELECT value::{kind} AS value, day::DATE AS day, count(*) AS count "
        f"FROM (VALUES {', '.join(rows)}) t(value, day) GROUP BY ALL"
    )


def grown(
    commands: Sequence[Sequence[Day]], min_count: int, frozen: Sequence[bool], kinds: Sequence[str]
) -> tuple[list[list[tuple[str, int]]], Values]:
    """After each command the values with their counts in the order of their ids; the rare ones."""
    vocabularies, before, first = [], None, 0
    with TemporaryDirectory() as folder:
        for number, days in enumerate(commands):
            here = Path(folder) / str(number)
            here.mkdir()
            with duckdb.connect() as connection:
                rows = grow_vocabulary(
                    connection,
                    "f",
                    counted(days, first, kinds[number]),
                    min_count=min_count,
                    before=before,
                    frozen=frozen[number],
                )
                write_vocabulary(connection, "f", here)
                write_rare(connection, "f", here / "rare")
            before = CountedBefore(here / "f.parquet", here / "rare" / "f.parquet")
            table = pq.read_table(before.vocabulary).to_pylist()
            assert [row["id"] for row in table] == list(range(1, rows))
            vocabularies.append([(str(row["value"]), row["count"]) for row in table])
            first += len(days)
        assert before is not None
        rare = pq.read_table(before.rare).to_pylist()
    return vocabularies, {str(row["value"]): row["count"] for row in rare}


def in_python(days: Sequence[Day], min_count: int, frozen: Sequence[bool]) -> list[str]:
    """The values in the order of their ids, a day at a time."""
    known: list[str] = []
    before: Counter[int] = Counter()
    for day, is_frozen in zip(days, frozen, strict=True):
        now = before + Counter(day)
        if not is_frozen:
            new = [v for v, count in now.items() if count >= min_count and str(v) not in known]
            # Those that frozen days have made frequent come first.
            late = {v: before[v] < min_count for v in new}
            new.sort(key=lambda v: (late[v], -(now if late[v] else before)[v], str(v)))
            known += map(str, new)
        before = now
    return known


@settings(max_examples=12, deadline=None)
@given(DAYS, st.integers(1, 5), st.data())
def test_days_one_by_one_are_those_at_once(days: list[Day], min_count: int, data) -> None:  # type: ignore[no-untyped-def]
    kinds = data.draw(st.lists(st.sampled_from(["BIGINT", "VARCHAR"]), min_size=len(days)))
    kinds = ["VARCHAR" if "VARCHAR" in kinds[: k + 1] else "BIGINT" for k in range(len(days))]
    one_by_one, rare = grown([[day] for day in days], min_count, [False] * len(days), kinds)
    [at_once], rare_at_once = grown([days], min_count, [False], ["BIGINT"])
    assert one_by_one[-1] == at_once
    assert rare == rare_at_once
    assert [value for value, _ in at_once] == in_python(days, min_count, [False] * len(days))
    counts = Counter(str(value) for day in days for value in day)
    assert dict(at_once) | rare == counts
    for before, after in pairwise(one_by_one):
        assert [value for value, _ in after][: len(before)] == [value for value, _ in before]


@settings(max_examples=6, deadline=None)
@given(DAYS, st.integers(1, 5), st.data())
def test_frozen_days_count_for_the_next(days: list[Day], min_count: int, data) -> None:  # type: ignore[no-untyped-def]
    frozen = data.draw(st.lists(st.booleans(), min_size=len(days), max_size=len(days)))
    found, rare = grown([[day] for day in days], min_count, frozen, ["BIGINT"] * len(days))
    assert [value for value, _ in found[-1]] == in_python(days, min_count, frozen)
    counts = Counter(str(value) for day in days for value in day)
    assert dict(found[-1]) | rare == counts
