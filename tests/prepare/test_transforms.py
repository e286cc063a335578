"""Transforms and buckets: fitted on train alone, the same for a request, refused where they cannot
be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.encode import load_raw_encoder
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from stem_torchrec.runs.encoder import carry_encoder
from tests.prepare.raw_tables import describe, files_under, write_text
from tests.prepare.test_encoder import assert_same, prepared, texts

DESCRIPTION = """
features:
  - {name: user}
  - {name: plain, column: price, kind: dense}
  - {name: log, column: price, kind: dense, transform: log1p}
  - {name: unit, column: price, kind: dense, transform: standard}
  - {name: rank, column: price, kind: dense, transform: quantile}
  - {name: often, column: user, kind: dense, transform: count}
  - {name: shops, column: shop, kind: dense, transform: count}
  - {name: double, expression: "price * 2", encoding: bucket, num_embeddings: 5}
labels: {y: y}
split: {by: column, column: part, train: [a], test: [b]}
min_count: 1
shuffle: false
"""
NAMES = ["user", "shop", "price", "y", "part"]
TRAIN = [(k % 7, f"s{k % 3}", 0 if k < 40 else round(k**1.5, 3), k % 2, "a") for k in range(100)]
# Values that train does not have, beyond its bounds and missing ones.
TEST = [
    *((9, "new", -0.5, 0, "b"), ("", "", "", 1, "b"), (1, "s1", "nan", 0, "b")),
    *((2, "s2", 1e6, 1, "b"), (3, "s0", 0, 0, "b"), (4, "s0", 555.5, 0, "b")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transforms")
    source = write_text(folder / "raw.csv", [NAMES, *TRAIN, *TEST])
    prepare_files([source], describe(DESCRIPTION), folder / "out")
    return folder


def columns(folder: Path, split: str) -> dict[str, list[Any]]:
    return prepared(folder / "out", split).to_pydict()


def test_what_each_gives(folder: Path) -> None:
    train, test = columns(folder, "train"), columns(folder, "test")
    price = np.array([row[2] for row in TRAIN], np.float64)
    assert train["log"] == pytest.approx(np.log1p(price), rel=1e-6)
    assert train["unit"] == pytest.approx((price - price.mean()) / price.std(), rel=1e-5)
    assert np.mean(train["unit"]) == pytest.approx(0, abs=1e-6)
    users = [sum(row[0] == user for row in TRAIN) for user, *_ in TRAIN]
    assert train["often"] == pytest.approx(np.log1p(users), rel=1e-6)
    # 40 of 100 values are 0: these lie in the middle of the first 40 hundredths.
    assert train["rank"][0] == pytest.approx(0.2, abs=0.01)
    assert train["rank"][40:] == pytest.approx(np.arange(40, 100) / 99, abs=0.01)
    assert train["double"][:40] == [1] * 40
    assert np.bincount(train["double"]).tolist() == [0, 40, 10, 25, 25]
    # Of rows that are none of train: the constants are train's, a missing value has its place.
    assert test["often"] == pytest.approx([0, 0, math.log(16), math.log(15), *[math.log(15)] * 2])
    assert test["shops"] == pytest.approx([0, 0, *[math.log(34)] * 2, *[math.log(35)] * 2])
    assert (test["log"][1], test["log"][2], test["unit"][1]) == (None, None, None)
    assert test["log"][0] == pytest.approx(math.log1p(-0.5))
    low, middle = train["rank"][0], test["rank"][5]
    assert test["rank"] == pytest.approx([low, 0.5, 0.5, 1, low, middle])
    assert test["double"][:5] == [1, 0, 0, 4, 1]


def test_rows_of_a_request_are_the_prepared_ones(folder: Path) -> None:
    raw = texts(folder / "raw.csv", NAMES)
    for split, part in (("train", "a"), ("test", "b")):
        rows = raw.filter(pa.compute.equal(raw["part"], part)).drop_columns(["part", "y"])
        assert_same(load_raw_encoder(folder / "out"), rows, prepared(folder / "out", split))
    numbers = pa.table({"user": [1, None], "shop": ["s1", None], "price": [0.25, None]})
    found = load_raw_encoder(folder / "out", ["log", "often", "double"]).encode(numbers)
    assert found["log"].to_pylist() == pytest.approx([math.log1p(0.25), None])
    assert found["double"].to_pylist() == [1, 0]
    # Of integers no SQL is asked.
    assert found["often"].to_pylist() == pytest.approx([math.log(16), 0])


def test_a_run_carries_what_its_features_count(folder: Path, tmp_path: Path) -> None:
    schema = load_schema(folder / "out").select(features=["user", "shops"])
    carry_encoder(folder / "out", schema, tmp_path)
    assert files_under(tmp_path / "vocab") == {"user.parquet", "shops.parquet"}
    found = load_raw_encoder(tmp_path, ["shops"]).encode(pa.table({"shop": ["s2", "new"]}))
    assert found["shops"].to_pylist() == pytest.approx([math.log(34), 0])


def test_threads_change_nothing(folder: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        out, options = tmp_path / f"{threads}", PrepareOptions(threads=threads, row_group_rows=33)
        prepare_files([folder / "raw.csv"], describe(DESCRIPTION), out, options=options)
        assert (out / "encoder.json").read_text() == (folder / "out/encoder.json").read_text()
        rows = prepared(out, "train")
        assert repr(rows.to_pydict()) == repr(prepared(folder / "out", "train").to_pydict())


ERRORS = [
    (
        "transform: quantile",
        "always 3",
        "features.x.transform: 'quantile' needs two values or mo",
    ),
    ("transform: standard", "always 3", "in train the column is always 3; leave the feature out"),
    ("transform: standard", "always missing", "in train the column is always missing"),
    ("transform: log1p", "-1", "raw.csv, row 2: feature 'x': -1 is not a finite number above -1"),
    ("transform: log1p", "cheap", "row 2: feature 'x': cheap is not a finite number above -1"),
]


@pytest.mark.parametrize(("key", "values", "message"), ERRORS)
def test_values_that_cannot_be_transformed(
    key: str, values: str, message: str, tmp_path: Path
) -> None:
    always = {"always 3": [3, 3], "always missing": ["", ""]}.get(values, [1, values])
    rows = [["x", "user", "y", "part"], *([x, 1, 0, "a"] for x in always), [5, 1, 0, "b"]]
    source = write_text(tmp_path / "raw.csv", rows)
    name, transform = key.split(": ")
    features = [{"name": "user"}, {"name": "x", "kind": "dense", name: transform}]
    with pytest.raises(UserError, match=message):
        prepare_files([source], describe(DESCRIPTION, features=features), tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()


def test_a_bucket_of_equal_values(tmp_path: Path) -> None:
    """Most values are one: it has a bucket of its own, and the others lie above it."""
    rows = [["x", "y"], *[[0, 0]] * 90, *[[k, 1] for k in range(1, 11)]]
    source = write_text(tmp_path / "raw.csv", rows)
    described = describe(
        "features: [{name: x, encoding: bucket, num_embeddings: 11}]\nlabels: {y: y}\n"
        "shuffle: false\nsplit: {by: random, shares: [1, 0, 0]}"
    )
    prepare_files([source], described, tmp_path / "out")
    assert columns(tmp_path, "train")["x"] == [1] * 90 + [2] * 10


def test_a_damaged_transform_is_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "out" / "encoder.json").read_text())
    (tmp_path / "vocab").symlink_to(folder / "out" / "vocab")
    for damage, message in (({"bounds": [2, 1]}, "damaged"), (None, "rank: has no transform")):
        [feature] = [f for f in content["features"] if f["name"] == "rank"]
        feature["transform"] = damage and feature["transform"] | damage
        feature["encoding"] = "dense" if damage else "bucket"
        (tmp_path / "encoder.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load_raw_encoder(tmp_path)
