"""Raw files as other programs write them: folders of partitions, times, line ends, compression."""

import bz2
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from tests.prepare.raw_tables import all_rows, describe, rows_of, vocabulary

DESCRIPTION = """
features: [{name: user}]
labels: {y: y}
split: {by: random, shares: [1, 0, 0]}
shuffle: false
min_count: 1
"""
PARQUET = {"format": {"type": "parquet"}}


def write_day(folder: Path, **columns: list[Any]) -> None:
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"user": [1, 2], "y": [0, 1], **columns}), folder / "part-0.parquet")


@pytest.mark.parametrize(
    "days", [("2022-04-01", "2022-04-02"), ("01", "1"), ("1", "10"), ("a b", "1")]
)
def test_folders_of_partitions_are_columns(tmp_path: Path, days: tuple[str, str]) -> None:
    for day in days:
        write_day(tmp_path / f"day={day.replace(' ', '%20')}" / "hour=7")
    described = describe(
        DESCRIPTION,
        features=[{"name": "user"}, {"name": "day"}],
        split={"by": "column", "column": "day", "train": [days[0]], "test": [days[1]]},
        **PARQUET,
    )
    prepare_files([tmp_path / "*" / "*" / "*.parquet"], described, tmp_path / "out")
    assert {split: len(rows) for split, rows in all_rows(tmp_path / "out").items()} == {
        "train": 2,
        "valid": 0,
        "test": 2,
    }
    assert [str(value) for value in vocabulary(tmp_path / "out", "day")] == [days[0]]


def test_a_partition_that_is_not_in_every_folder_and_a_column_that_is_in_the_files(
    tmp_path: Path,
) -> None:
    write_day(tmp_path / "a" / "user=9")
    described = describe(DESCRIPTION, **PARQUET)
    prepare_files([tmp_path / "a" / "*" / "*"], described, tmp_path / "out")
    assert set(vocabulary(tmp_path / "out", "user")) == {1, 2}  # the file's own
    write_day(tmp_path / "b" / "day=1")
    write_day(tmp_path / "b" / "plain")
    with pytest.raises(UserError, match=r"plain/part-0.parquet: no folder day=\.\.\."):
        prepare_files([tmp_path / "b" / "*" / "*"], described, tmp_path / "out", overwrite=True)


@pytest.fixture
def in_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    def enter(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield enter
    monkeypatch.delenv("TZ")
    time.tzset()


def write_times(path: Path, kind: str, first: int = 1_650_000_000) -> dict[str, Any]:
    """120 rows at intervals of 30 minutes, shuffled; returns the format."""
    seconds = [first + 1800 * (7 * k % 120) for k in range(120)]
    row = [(s - first) // 1800 for s in seconds]
    if kind.startswith("parquet"):
        _, unit, *zone = kind.split()
        factor = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        times = pa.array([s * factor for s in seconds], pa.timestamp(unit, *zone))
        pq.write_table(pa.table({"ts": times, "row": row, "y": [0] * 120}), path)
        return {"type": "parquet"}
    moments = [datetime.fromtimestamp(s, UTC) for s in seconds]
    texts = [m.strftime("%Y-%m-%d %H:%M:%S") + ("Z" if kind == "csv Z" else "") for m in moments]
    if kind == "csv offset":
        from datetime import timedelta, timezone

        east = timezone(timedelta(hours=2))
        texts = [str(m.astimezone(east if k % 2 else UTC)) for k, m in enumerate(moments)]
    lines = [f"{text},{number},0" for text, number in zip(texts, row, strict=True)]
    path.write_text("\n".join(["ts,row,y", *lines]) + "\n")
    return {}


KINDS = ["parquet us UTC", "parquet ns", "parquet ns Asia/Tokyo", "csv", "csv Z", "csv offset"]


@pytest.mark.parametrize(
    ("zone", "kind"),
    [
        *(("Asia/Shanghai", kind) for kind in KINDS),
        ("America/New_York", "parquet ns"),
        ("America/New_York", "csv"),
        ("UTC", "csv offset"),
    ],
)
def test_times_are_those_of_utc(
    tmp_path: Path, in_zone: Callable[[str], None], zone: str, kind: str
) -> None:
    in_zone(zone)
    raw_format = write_times(tmp_path / "raw", kind)
    described = describe(
        """
        features:
          - {name: row, encoding: identity, num_embeddings: 120}
          - {name: hour, expression: hour(ts), encoding: identity, num_embeddings: 24}
        labels: {y: y}
        split: {by: time, column: ts, valid_from: "2022-04-16 02:00:00+02:00",
                test_from: 2022-04-17T00:00:00}
        """,
        format=raw_format,
    )
    stats = prepare_files([tmp_path / "raw"], described, tmp_path / "out")
    found = all_rows(tmp_path / "out")
    # The first row is of 2022-04-15 05:20 UTC.
    assert [row["row"] for row in found["train"]] == list(range(38))
    assert len(found["valid"]) == 48
    assert [row["hour"] for row in found["train"]][:4] == [5, 5, 6, 6]
    assert stats["cuts"] == {
        "valid_from": "2022-04-16 00:00:00",
        "test_from": "2022-04-17 00:00:00",
    }


def test_a_split_by_time_tells_its_cuts_and_the_rows_without_an_id(tmp_path: Path) -> None:
    lines = [f"{user},{k},{k % 2}" for k, user in enumerate(["a", "a", "b", "", "c", "", "a", "c"])]
    (tmp_path / "raw.csv").write_text("\n".join(["user,at,y", *lines]) + "\n")
    split = {"by": "time", "column": "at", "shares": [0.5, 0.25, 0.25]}
    described = describe(DESCRIPTION, split=split)
    stats = prepare_files([tmp_path / "raw.csv"], described, tmp_path / "out")
    assert stats["cuts"] == {"valid_from": 4, "test_from": 6}
    assert stats["unseen"] == {"valid": {"user": 1}, "test": {"user": 1}}


HEAD, ROWS = "user,title,y", [f"{k % 7},t{k % 5},{k % 2}" for k in range(300)]
STRAY = [*ROWS[:200], "1,a\rb,1", *ROWS[200:]]
MIXED = "lines end in several ways"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join([HEAD, *ROWS]), None),
        ("\r\n".join([HEAD, *ROWS]), None),
        ("\r".join([HEAD, *ROWS]), None),
        (HEAD + "\n" + "\r\n".join(ROWS), MIXED),
        ("\r\n".join([HEAD, *ROWS]) + "\r\n" + "\n".join(ROWS), MIXED),
        ("\n".join([HEAD, *STRAY]), MIXED),
        (
            bz2.compress("\n".join([HEAD, *ROWS]).encode()),
            "is a bzip2 file by its content; allowed",
        ),
        (b"PAR1" + bytes(9), "is a Parquet file by its content; .* or format.type: parquet"),
    ],
)
@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_line_ends_and_compression(
    tmp_path: Path, content: str | bytes, message: str | None, on_bad_row: str
) -> None:
    source = tmp_path / "raw.csv"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = PrepareOptions.model_validate({"on_bad_row": on_bad_row})
    described = describe(DESCRIPTION, features=[{"name": "user"}, {"name": "title"}])
    if message is not None:
        with pytest.raises(UserError, match=f"raw.csv: .*{message}"):
            prepare_files([source], described, tmp_path / "sets" / "out", options=options)
        assert os.listdir(tmp_path / "sets") == []
        return
    prepare_files([source], described, tmp_path / "sets" / "out", options=options)
    assert len(rows_of(tmp_path / "sets" / "out", "train")) == 300


@pytest.mark.parametrize(
    ("stated", "value", "message"),
    [
        ("INTEGER", "1.5", "row 2: column 'at': 1.5 is no INTEGER"),
        ("int8", "0x1", "row 2: column 'at': 0x1 is no BIGINT"),
        ("TIMESTAMP", "2024-01-01 00:00:00+02", "row 2: column 'at': .* is no TIMESTAMP"),
        ("WORD", "1", "format.types.at: 'WORD' is no type of DuckDB"),
        ("BIGINT, 1", "1", "format.types.at: 'BIGINT, 1' is no type of DuckDB"),
    ],
)
def test_stated_types_are_strict(tmp_path: Path, stated: str, value: str, message: str) -> None:
    good = "2024-01-01" if stated == "TIMESTAMP" else "1"
    (tmp_path / "raw.csv").write_text(f"user,at,y\n1,{good},0\n1,{value},1\n")
    described = describe(
        DESCRIPTION, features=[{"name": "user"}, {"name": "at"}], format={"types": {"at": stated}}
    )
    with pytest.raises(UserError, match=message):
        prepare_files([tmp_path / "raw.csv"], described, tmp_path / "out")


@pytest.mark.parametrize("unused", ["zzz", "age", "use"])
def test_columns_that_nothing_uses_are_not_looked_at(
    tmp_path: Path, unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stem_torchrec.prepare.tables.raw.files.SAMPLE_ROWS", 3)
    rows = [f"{k % 4},{'odd' if k == 30 else k},{k % 2}" for k in range(40)]
    (tmp_path / "raw.csv").write_text("\n".join([f"user_age,{unused},y", *rows]) + "\n")
    described = describe(DESCRIPTION, features=[{"name": "f", "expression": "user_age + 1"}])
    options = PrepareOptions(on_bad_row="skip")
    stats = prepare_files([tmp_path / "raw.csv"], described, tmp_path / "out", options=options)
    assert stats["skipped"] == {}
    for name, values in (("a", [1, 2]), ("b", ["x", "y"])):
        table = pa.table({unused: values, "user_age": [1, 2], "y": [0, 1]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    described = describe(DESCRIPTION, features=[{"name": "user_age"}], **PARQUET)
    prepare_files([tmp_path / "*.parquet"], described, tmp_path / "out", overwrite=True)


def test_a_column_split_takes_lists_and_dates(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split.column.train\n.*found 'a'; write \[a\]"):
        describe(DESCRIPTION, split={"by": "column", "column": "day", "train": "a"})
    (tmp_path / "raw.csv").write_text("user,day,y\n1,2022-04-01,0\n2,2022-04-02,1\n")
    split = "split: {by: column, column: day, train: [2022-04-01], test: [2022-04-02]}"
    described = describe(DESCRIPTION.replace("split: {by: random, shares: [1, 0, 0]}", split))
    stats = prepare_files([tmp_path / "raw.csv"], described, tmp_path / "out")
    assert stats["samples"] == {"train": 1, "test": 1}
