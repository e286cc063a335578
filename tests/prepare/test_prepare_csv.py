"""Features, labels and splits of described files, against what csv and dicts give."""

import csv
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.prepare.engine.row_hash import hashed_id
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import all_rows, describe, rows_of, vocabulary, write_text

MOVIELENS = Path(__file__).parents[2].parent / "shared" / "data" / "ml-latest-small"
LINES = [
    ["user", "item name", "tags", "price", "stars", "weight", "day", "seen", "slot"],
    ["1", "a", "x|y|x", "0.5", "5", "1", "2024-01-01", "3|4", "0"],
    ["1", "b", "", "", "2", "2", "2024-01-01", "", "1"],
    ["2", "a", "y| z ", "nan", "", "0.5", "2024-01-02", "0", ""],
    ["3", "a", "z", "7", "4", "1", "2024-01-03", "9", "2"],
    ["", "c", "q", "-1", "3", "1", "2024-01-04", "1", "3"],
]
DESCRIPTION = """
features:
  - {name: user-id, column: user, side: user}
  - {name: item, column: item name, side: item, encoding: hash, num_embeddings: 50}
  - {name: tags, kind: bag, separator: "|", pooling: mean, side: item}
  - {name: seen, kind: bag, separator: "|", encoding: identity, num_embeddings: 10}
  - {name: slot, encoding: identity, num_embeddings: 4}
  - {name: price, kind: dense}
  - {name: dear, expression: "price > 1"}
labels: {liked: stars >= 4, bad: CASE WHEN stars < 3 THEN 1 ELSE 0 END}
sample_weight: weight
group: user
user: user-id
item: item
split: {by: time, column: day, valid_from: 2024-01-03, test_from: 2024-01-04}
min_count: 2
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_text(tmp_path / "raw [1].csv", LINES)  # a name that looks like a pattern


def test_every_kind_of_column(source: Path, tmp_path: Path) -> None:
    stats = prepare_files([source], describe(DESCRIPTION), tmp_path / "out")
    # Twice in train: user 1, tags x and y; user 2 and tag z once.
    assert vocabulary(tmp_path / "out", "user-id") == {1: 1}
    assert vocabulary(tmp_path / "out", "tags") == {"x": 1, "y": 2}
    a, b, c = (hashed_id(value, 50) for value in "abc")
    common = {"sample_weight": 1.0, "group": 1, "dear": 0}
    expected = {
        "train": [
            {"user-id": 1, "item": a, "tags": [1, 2, 1], "seen": [3, 4], "slot": 0}
            | {"price": 0.5, "liked": 1, "bad": 0},
            {"user-id": 1, "item": b, "tags": [], "seen": [], "slot": 1, "price": None}
            | {"liked": 0, "bad": 1, "sample_weight": 2.0},
            {"user-id": 0, "item": a, "tags": [2, 0], "seen": [0], "slot": 0}
            | {"liked": None, "bad": 0, "sample_weight": 0.5, "group": 2},
        ],
        "valid": [
            {"user-id": 0, "item": a, "tags": [0], "seen": [9], "slot": 2, "price": 7.0}
            | {"liked": 1, "bad": 0, "group": 3}
        ],
        "test": [
            {"user-id": 0, "item": c, "tags": [0], "seen": [1], "slot": 3, "price": -1.0}
            | {"liked": 0, "bad": 0, "group": None}
        ],
    }
    found = all_rows(tmp_path / "out")
    price = found["train"][2].pop("price")
    assert price != price
    assert found == {split: [common | row for row in rows] for split, rows in expected.items()}
    assert (stats["users"], stats["items"], stats["raw_rows"], stats["skipped"]) == (3, 3, 5, {})
    assert stats["hash"] == {"item": {"values": 3, "ids": 3, "collisions": 0}}
    schema = load_schema(tmp_path / "out")
    assert [(f.name, f.num_embeddings) for f in schema.sparse if f.encoding == "vocabulary"] == [
        ("user-id", 2),
        ("tags", 3),
        ("dear", 1),
    ]
    for split in SPLITS:
        check_split(tmp_path / "out", split, schema)


def test_same_rows_from_parquet_and_from_compressed_parts(source: Path, tmp_path: Path) -> None:
    import gzip

    prepare_files([source], describe(DESCRIPTION), tmp_path / "a")
    for number, rows in enumerate((LINES[:3], [LINES[0], *LINES[3:]])):
        part = write_text(tmp_path / f"part-{number}.csv", rows)
        with gzip.open(f"{part}.gz", "wb") as file:
            file.write(part.read_bytes())
    types = {"types": {"price": "DOUBLE", "day": "TIMESTAMP", "weight": "DOUBLE"}}
    prepare_files([tmp_path / "part-*.csv.gz"], describe(DESCRIPTION, format=types), tmp_path / "b")
    columns = zip(*LINES[1:], strict=True)
    table = {name: [v or None for v in c] for name, c in zip(LINES[0], columns, strict=True)}
    for name, parse in {"user": int, "price": float, "stars": int, "slot": int}.items():
        table[name] = [parse(v) if v else None for v in table[name]]
    table["seen"] = [[int(v) for v in (x or "").split("|") if v] for x in table["seen"]]
    table["tags"] = [[v.strip() for v in (x or "").split("|") if v] for x in table["tags"]]
    pq.write_table(pa.table(table), tmp_path / "raw.parquet")
    lists = DESCRIPTION.replace(', separator: "|"', "").replace(
        "column: day", 'expression: "day::DATE"'
    )
    parquet = describe(lists, format={"type": "parquet"})
    prepare_files([tmp_path / "raw.parquet"], parquet, tmp_path / "c")
    first = str(all_rows(tmp_path / "a"))  # as text, for NaN is not equal to itself
    assert str(all_rows(tmp_path / "b")) == first
    assert str(all_rows(tmp_path / "c")) == first


def test_features_of_one_table_share_ids(tmp_path: Path) -> None:
    rows = [["item", "last", "past"], *[[1, 2, "3|1"]] * 3, [2, 1, "2"], [9, 9, "9"]]
    source = write_text(tmp_path / "raw.csv", rows)
    described = describe(
        """
        features:
          - {name: item}
          - {name: last, table: item}
          - {name: past, kind: bag, separator: "|", table: item, pooling: mean}
        labels: {y: item = 1}
        may_read_labels: [item]
        split: {by: random, shares: [1, 0, 0]}
        shuffle: false
        min_count: 3
        """
    )
    prepare_files([source], described, tmp_path / "out")
    # Over all three columns 1 occurs 7 times, 2 five times, 3 and 9 three times each.
    assert vocabulary(tmp_path / "out", "item") == {1: 1, 2: 2, 3: 3, 9: 4}
    rows = [{"item": 1, "last": 2, "past": [3, 1], "y": 1}] * 3
    rows += [{"item": 2, "last": 1, "past": [2], "y": 0}, {"item": 4, "last": 4, "past": [4]}]
    assert rows_of(tmp_path / "out", "train") == [{"y": 0} | row for row in rows]
    features = load_schema(tmp_path / "out").features
    assert {(f.table, f.num_embeddings) for f in features} == {(None, 5), ("item", 5)}
    assert {path.name for path in (tmp_path / "out" / "vocab").iterdir()} == {"item.parquet"}


def test_vocabulary_knows_the_train_split_only(tmp_path: Path) -> None:
    rows = [["city", "part"], *[["rome", "a"]] * 2, *[["oslo", "b"]] * 5, *[["bern", "c"]] * 5]
    described = describe(
        """
        features: [{name: city}]
        labels: {y: city = 'rome'}
        may_read_labels: [city]
        split: {by: column, column: part, train: [a], valid: [b], test: [c]}
        min_count: 2
        """
    )
    source = write_text(tmp_path / "raw.csv", rows)
    stats = prepare_files([source], described, tmp_path / "out")
    assert vocabulary(tmp_path / "out", "city") == {"rome": 1}
    assert stats["samples"] == {"train": 2, "valid": 5, "test": 5}
    assert {row["city"] for row in rows_of(tmp_path / "out", "test")} == {0}


def test_codes_with_leading_zeros_stay_apart_from_numbers(tmp_path: Path) -> None:
    source = write_text(tmp_path / "raw.csv", [["code", "y"], ["01", 1], ["1", 0]])
    described = describe(
        "{features: [{name: code}], labels: {y: y}, min_count: 1, "
        "split: {by: random, shares: [1, 0, 0]}}"
    )
    prepare_files([source], described, tmp_path / "out")
    assert set(vocabulary(tmp_path / "out", "code")) == {"01", "1"}


@pytest.mark.skipif(not MOVIELENS.is_dir(), reason=f"no MovieLens in {MOVIELENS}")
def test_movielens_ratings(tmp_path: Path) -> None:
    described = describe(
        """
        features:
          - {name: user_id, column: userId, side: user}
          - {name: item_id, column: movieId, side: item}
          - {name: hour, expression: "timestamp // 3600 % 24", encoding: identity,
             num_embeddings: 24}
        labels: {like: rating >= 4}
        group: userId
        user: user_id
        item: item_id
        split: {by: time, column: timestamp, shares: [0.8, 0.1, 0.1]}
        """
    )
    stats = prepare_files([MOVIELENS / "ratings.csv"], described, tmp_path / "out")
    with (MOVIELENS / "ratings.csv").open() as lines:
        ratings = sorted(csv.DictReader(lines), key=lambda row: int(row["timestamp"]))
    assert sum(stats["samples"].values()) == len(ratings)
    assert stats["samples"]["train"] == pytest.approx(0.8 * len(ratings), rel=1e-3)
    assert stats["users"] == len({row["userId"] for row in ratings})
    train = ratings[: stats["samples"]["train"]]
    found = rows_of(tmp_path / "out", "train")
    assert [row["group"] for row in found] == [int(row["userId"]) for row in train]
    assert [row["like"] for row in found] == [int(float(row["rating"]) >= 4) for row in train]
    counts = Counter(int(row["movieId"]) for row in train)
    known = {movie for movie, count in counts.items() if count >= 10}
    assert set(vocabulary(tmp_path / "out", "item_id")) == known
