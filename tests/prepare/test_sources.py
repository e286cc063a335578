"""Folders and partitions as sources, and rows that are split by their files."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from stem_torchrec.prepare.tables.raw.batches import raw_columns, raw_tables
from tests.prepare.raw_tables import all_rows, describe, files_under, vocabulary, write_text

BY_FILE = """
features: [{name: a}]
labels: {y: y}
split: {by: file, train: ["train_*"], valid: ["late/valid.csv"], test: ["test [[]1].csv"]}
shuffle: false
min_count: 1
"""
BY_DAY = """
features: [{name: a}, {name: city}]
labels: {y: y}
split: {by: day, column: date, valid: ["2022-04-10"]}
min_count: 1
"""


def write(path: Path, value: int, label: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, [["a", "y"], [value, label]])


def sources(folder: Path) -> list[Path]:
    names = ["train_1.csv", "train_2.csv", "late/valid.csv", "test [1].csv"]
    return [write(folder / name, number) for number, name in enumerate(names)]


def test_rows_are_split_by_their_files(tmp_path: Path) -> None:
    stats = prepare_files(sources(tmp_path), describe(BY_FILE), tmp_path / "out")
    assert vocabulary(tmp_path / "out", "a") == {0: 1, 1: 2}
    rows = all_rows(tmp_path / "out")
    assert {split: [row["a"] for row in rows[split]] for split in rows} == {
        "train": [1, 2],
        "valid": [0],
        "test": [0],
    }
    assert stats["samples"] == {"train": 2, "valid": 1, "test": 1}


def test_parquet_is_split_by_its_files(tmp_path: Path) -> None:
    for day in (8, 9):
        folder = tmp_path / f"date=2022-04-0{day}"
        folder.mkdir()
        pq.write_table(pa.table({"a": [day], "y": [1]}), folder / "x.parquet")
    split = {"by": "file", "train": ["date=2022-04-08/*"], "test": ["date=2022-04-09/*"]}
    described = describe(BY_FILE, split=split, format={"type": "parquet"})
    prepare_files([tmp_path], described, tmp_path / "out")
    assert vocabulary(tmp_path / "out", "a") == {8: 1}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": ["*.csv"], "valid": ["*.tsv"]}, r"split.valid: '\*.tsv' matches no file"),
        (
            {"train": ["*.csv"], "valid": ["train_2*"]},
            r"split.valid: 'train_2\*' matches .*train_2.csv, which is of train",
        ),
        ({"train": ["train_*"], "test": ["t*1?.csv"]}, "late/valid.csv matches no pattern"),
    ],
)
def test_a_file_is_of_one_split(tmp_path: Path, split: dict[str, list[str]], message: str) -> None:
    described = describe(BY_FILE, split={"by": "file"} | split)
    with pytest.raises(UserError, match=message):
        prepare_files(sources(tmp_path), described, tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()


def test_a_folder_of_partitions_is_a_source(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "date=2022-04-08" / "city=Sal%C3%A9" / "part-0.csv", 1)
    write(raw / "date=2022-04-08" / "city=__HIVE_DEFAULT_PARTITION__" / "part-0.csv", 2)
    packed = write(raw / "date=2022-04-10" / "city=7" / "part-0.csv", 3)
    (packed.parent / "part-0.csv.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    (raw / "_SUCCESS").touch()
    (raw / "date=2022-04-08" / "city=Sal%C3%A9" / ".part-0.csv.crc").write_bytes(b"\0")
    write(raw / "other" / "part-0.csv", 4)  # no partition
    prepare_files([raw], describe(BY_DAY), tmp_path / "out")
    assert files_under(tmp_path / "out" / "train") == {"date=2022-04-08"}
    assert files_under(tmp_path / "out" / "valid") == {"date=2022-04-10"}
    assert vocabulary(tmp_path / "out", "city") == {"Salé": 1}
    assert vocabulary(tmp_path / "out", "a") == {1: 1, 2: 2}
    file = raw / "date=2022-04-08" / "city=Sal%C3%A9" / "part-0.csv"
    assert raw_columns(file, {}) == ["a", "y", "date", "city"]
    [table] = raw_tables(file, {}, ["city", "a"], 100)
    assert table.to_pylist() == [{"city": "Salé", "a": "1"}]


def test_a_column_of_the_file_holds_before_its_folder_s(tmp_path: Path) -> None:
    folder = tmp_path / "date=2022-04-08" / "a=5"
    write(folder / "part-0.csv", 1)
    split = {"by": "day", "column": "date"}
    described = describe(BY_DAY, features=[{"name": "a"}], split=split)
    prepare_files([folder], described, tmp_path / "out")
    assert vocabulary(tmp_path / "out", "a") == {1: 1}
