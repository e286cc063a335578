"""Dense features that networks do not train on are named before training starts."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.dense_scale import Moments, Scale, scale_warnings, train_scales
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, write_text

TIMES = [1_650_000_000.0 + 1000 * k for k in range(64)]
COLUMNS = {
    "time": TIMES,
    "fine": [(k % 7 - 3) / 2 for k in range(64)],
    "same": [5e8] * 64,
    "gaps": [None, float("nan"), 1.0, -1.0] * 16,
}


def write(folder: Path) -> Schema:
    names = ("time", "fine", "same", "gaps")
    dense = [Feature(name=name, kind="dense") for name in names]
    user = Feature(name="user", kind="id", num_embeddings=9)
    schema = Schema(features=(user, *dense), tasks=(Task(name="click"),))
    (folder / "train").mkdir(parents=True)
    schema.save(folder)
    rows = {name: pa.array(values, pa.float32()) for name, values in COLUMNS.items()}
    rows |= {"user": pa.array([k % 9 for k in range(64)]), "click": pa.array([0, 1] * 32)}
    pq.write_table(pa.table(rows), folder / "train" / "a.parquet")
    return schema


def test_a_timestamp_and_a_constant_are_named_and_nothing_else(tmp_path: Path) -> None:
    schema = write(tmp_path)
    scales = train_scales(tmp_path, schema)
    assert scales["fine"].mean == pytest.approx(np.mean(COLUMNS["fine"]))
    assert scales["fine"].std == pytest.approx(np.std(COLUMNS["fine"]))
    assert scales["gaps"] == Scale(0.0, pytest.approx(0.5**0.5), -1.0, 1.0)
    of_time, of_same = scale_warnings(scales)
    assert "dense feature 'time': mean 1.65e+09, standard deviation 1.8" in of_time
    assert of_same == "dense feature 'same': always 5e+08, it tells nothing"
    assert check_folder(tmp_path).warnings == [of_time, of_same]


def test_what_stats_json_says_of_all_rows_is_taken(tmp_path: Path) -> None:
    schema = write(tmp_path)
    stated = {f.name: Scale(0.0, 1.0, -2.0, 2.0)._asdict() for f in schema.dense}
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"dense": stated}))
    assert scale_warnings(train_scales(tmp_path, schema)) == []
    for broken in ("", "[]", '{"dense": {"time": {"mean": 1}}}', '{"dense": 3}', "{}"):
        stats.write_text(broken)
        assert len(scale_warnings(train_scales(tmp_path, schema))) == 2


@pytest.mark.parametrize(
    ("scale", "warned"),
    [
        (Scale(0, 1, -3, 3), False),
        (Scale(9.9, 9.9, 0, 99), False),
        (Scale(10.1, 1, 0, 99), True),
        (Scale(-10.1, 1, -99, 0), True),
        (Scale(0, 10.1, -99, 99), True),
        (Scale(0, 0.0099, -1, 1), True),
    ],
)
def test_limits(scale: Scale, warned: bool) -> None:
    assert bool(scale_warnings({"x": scale})) == warned


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(3, 2, 1000).astype(np.float32)
    found = Moments().with_values(values[:0]).with_values(values[:300]).with_values(values[300:])
    expected = Scale(values.mean(), values.std(), values.min(), values.max())
    assert found.scale == pytest.approx(expected, rel=1e-5)


def test_prepare_states_the_scales_of_train(tmp_path: Path) -> None:
    rows = [["user", "time", "y"], *([k % 5, f"{TIMES[k]:.0f}", k % 2] for k in range(60))]
    rows.append([1, "", 1])
    described = describe(
        "{features: [{name: user}, {name: time, kind: dense}], labels: {like: y}, min_count: 1, "
        "split: {by: random, shares: [1, 0, 0]}}"
    )
    stats = prepare_files([write_text(tmp_path / "raw.csv", rows)], described, tmp_path / "out")
    values = np.array([*TIMES[:60], 0.0])  # a missing value is read as 0
    assert stats["dense"]["time"]["mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert stats["dense"]["time"]["std"] == pytest.approx(values.std(), rel=1e-6)
    assert json.loads((tmp_path / "out" / "stats.json").read_text()) == stats
