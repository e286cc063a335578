"""What Spark prepares is what one machine does: ids, order, vocabularies, encoder, statistics."""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stem_torchrec as st
from stem_torchrec.cli import main
from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.options import PrepareOptions
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from stem_torchrec.prepare.tables.report import FEATURE_STATS
from tests.prepare.raw_tables import describe, write_text
from tests.support.prepared import small_config

pytest.importorskip("pyspark", reason="needs the extra spark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("java") or "JAVA_HOME" in os.environ), reason="needs a Java runtime"
    ),
    # Py4J leaves the sockets by which rows came to the collector.
    pytest.mark.filterwarnings("ignore:unclosed .socket:ResourceWarning"),
]

NUM_ROWS = 700
OPTIONS = PrepareOptions(shuffle_seed=5)
COLUMNS = ["user", "item name", "tags", "price", "stars", "weight", "day", "when", "seen", "slot"]
COLUMNS += ["part", "city", "other user", "version"]
DESCRIPTION = """
features:
  - {name: user-id, column: user, side: user}
  - {name: friend, column: other user, table: user-id}
  - {name: item, column: item name, side: item, encoding: hash, num_embeddings: 50}
  - {name: tags, kind: bag, separator: "|", pooling: mean, side: item}
  - {name: marks, column: tags, kind: bag, separator: "|", encoding: hash, num_embeddings: 9}
  - {name: seen, kind: bag, separator: "|", encoding: identity, num_embeddings: 10}
  - {name: slot, encoding: identity, num_embeddings: 4}
  - {name: city, side: user}
  - {name: version}
  - {name: price, kind: dense}
labels: {liked: stars >= 4, clicked: slot}
may_read_labels: [slot]
sample_weight: weight
group: city
user: user-id
item: item
format: {null_strings: ["", "NA"]}
min_count: 4
"""
SPLITTINGS: dict[str, dict[str, Any]] = {
    "random": {"by": "random", "shares": [0.7, 0.2, 0.1], "seed": 3},
    "days": {"by": "time", "column": "day", "valid_from": "2024-01-20", "test_from": "2024-01-25"},
    "shares": {"by": "time", "column": "when", "shares": [0.8, 0.1, 0.1]},
    "column": {"by": "column", "column": "part", "train": [1], "valid": [2], "test": ["x"]},
}


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "3",
        "spark.sql.files.maxPartitionBytes": "20000",  # files have several blocks
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
    }
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()
    gc.collect()


def raw_rows() -> list[list[str]]:
    rng = np.random.default_rng(0)

    def row(k: int) -> list[str]:
        user = "" if k % 41 == 0 else f"{rng.integers(-3, 40)}" + ".0" * (k % 90 == 7)
        tags = "|".join(rng.choice(["x", " y ", "12", "é", ""], rng.integers(0, 5)))
        price = ["nan", "NA", f"{rng.normal():.4f}", "7", "-1e-3"][rng.integers(0, 5)]
        return [
            user,
            str(rng.choice(["a", '"b, ""c"""', "77", "-5", "07", "NA", "9" * 25])),
            tags,
            price,
            str(rng.choice(["1", "4", "5", "3.5", ""])),
            f"{rng.uniform(0, 2):.3f}",
            f"2024-01-{rng.integers(1, 29):02d}",
            str(rng.integers(10**9, 10**9 + 500)),
            "|".join(map(str, rng.integers(0, 10, rng.integers(0, 3)))),
            str(rng.choice(["0", "1", ""])),
            str(rng.choice(["1", "1.0", "2", "x"], p=[0.5, 0.2, 0.2, 0.1])),
            str(rng.choice(["5", "Bonn", "9223372036854775808"])),
            str(rng.integers(0, 60)),
            str(rng.choice(["1.5", "2.0", "3"])),
        ]

    return [row(k) for k in range(NUM_ROWS)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two files whose order is not that of their names; the second by a pattern."""
    folder, rows = tmp_path_factory.mktemp("raw"), raw_rows()
    first = write_text(folder / "z [1].csv", [COLUMNS, *rows[:500]])
    write_text(folder / "a.csv", [COLUMNS, *rows[500:]])
    return [str(first), str(folder / "a*.csv")]


def contents(folder: Path) -> dict[str, Any]:
    """All that a prepared folder holds; of a split its rows in order, in however many files."""

    def table(files: list[Path]) -> Any:
        joined = pa.concat_tables([pq.read_table(file) for file in files])
        types = {field.name: str(field.type).replace("element", "item") for field in joined.schema}
        return types, joined.to_pylist()

    stats = json.loads((folder / "stats.json").read_text())
    stats.pop(FEATURE_STATS, None)  # one machine alone reports on each feature
    return {
        **{split: table(sorted((folder / split).glob("*.parquet"))) for split in SPLITS},
        **{file.name: table([file]) for file in (folder / "vocab").glob("*.parquet")},
        **{name: (folder / name).read_text() for name in ("schema.json", "encoder.json")},
        "dense": stats.pop("dense"),
        "stats": stats,
    }


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, scale in expected.pop("dense").items():
        assert found["dense"][name] == pytest.approx(scale)
    for name, value in expected.items():
        if name == "stats":
            assert found[name] == value
        else:
            assert repr(found[name]) == repr(value), name  # as texts: NaN is NaN


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_the_folder_is_that_of_one_machine(
    spark: Any, sources: list[str], tmp_path: Path, splitting: str
) -> None:
    from stem_torchrec.prepare.spark.prepare import prepare_with_spark

    description = describe(DESCRIPTION, split=SPLITTINGS[splitting])
    prepare_files(sources, description, tmp_path / "one", options=OPTIONS)
    prepare_with_spark(spark, sources, description, tmp_path / "many", shuffle_seed=5)
    assert_same(contents(tmp_path / "many"), contents(tmp_path / "one"))
    assert main(["prepare", "--check", str(tmp_path / "many")]) == 0
    if splitting == "days":
        assert trained_auc(tmp_path / "many") == trained_auc(tmp_path / "one")


def trained_auc(data: Path) -> list[dict[str, float]]:
    config = small_config(data.parent / f"{data.name}.yaml", data, data.parent / f"{data.name}_run")
    st.train(config, train={"max_steps": 8, "batch_size": 64})
    records = st.load_run(data.parent / f"{data.name}_run").metrics().to_pylist()
    found = [{key: row[key] for key in row if key.startswith("auc/")} for row in records]
    assert any(value for row in found for value in row.values())
    return found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"features": [{"name": "user", "expression": "user + 1"}]},
            r"features\.user\.expression: 'user \+ 1' is SQL of DuckDB.*allowed here: a raw column",
        ),
        (
            {"split": {"by": "time", "expression": "day", "shares": [0.8, 0.1, 0.1]}},
            r"split\.expression: 'day' is SQL of DuckDB",
        ),
        ({"format": {"delimiter": "||"}}, r"format\.delimiter: '\|\|'; Spark takes one"),
        ({"format": {"types": {"user": "BIGINT"}}}, r"format\.types\.user: 'BIGINT'; Spark takes"),
        ({"labels": {"liked": "stars BETWEEN 4 AND 5"}}, r"labels\.liked: 'stars BETWEEN"),
        ({"labels": {"liked": "stairs >= 4"}}, r"labels\.liked: unknown column 'stairs'"),
        (
            {"labels": {"liked": "stars"}},
            r"^/.*z \[1\]\.csv, row \d+: label 'liked': .* is not 0",
        ),
    ],
)
def test_what_cannot_be_is_named_and_nothing_is_written(
    spark: Any, sources: list[str], tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    from stem_torchrec.prepare.spark.prepare import prepare_with_spark

    named = {"features": [{"name": "user"}], "user": None, "item": None, "may_read_labels": []}
    description = describe(DESCRIPTION, **{"split": SPLITTINGS["random"]} | named | changed)
    with pytest.raises(UserError, match=message):
        prepare_with_spark(spark, sources, description, tmp_path / "out")
    assert not (tmp_path / "out").exists()
