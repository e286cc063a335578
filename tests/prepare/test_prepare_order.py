"""Which split a row falls into and where in it: by position, values and seeds alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stem_torchrec.data.schema import SPLITS
from stem_torchrec.prepare.engine.row_hash import row_key
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.prepare_files import PrepareOptions, prepare_files
from tests.prepare.raw_tables import all_rows, describe, rows_of, write_text

DESCRIPTION = """
features:
  - {name: row, encoding: identity, num_embeddings: 1000000}
  - {name: user}
labels: {y: row % 2}
may_read_labels: [row]
split: {by: random, seed: 3}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Above 122,880 rows DuckDB hands parts of a table to several threads.
    rows = [["row", "user", "time"], *([k, k * k % 997, 10**9 + k // 7] for k in range(300_000))]
    return write_text(tmp_path_factory.mktemp("raw") / "raw.csv", rows)


@pytest.fixture(scope="module")
def out(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared as described, without any option."""
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare_files([source], describe(DESCRIPTION), folder)
    return folder


def rows_in(folder: Path, split: str) -> list[int]:
    return [row["row"] for row in rows_of(folder, split)]


def row_groups(folder: Path) -> list[int]:
    (file,) = folder.iterdir()
    footer = pq.read_metadata(file)
    return [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]


def small_files(**options: Any) -> PrepareOptions:
    return PrepareOptions(row_group_rows=8192, memory_gib=1, **options)


def test_the_same_on_any_number_of_threads(source: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        options = small_files(threads=threads)
        prepare_files([source], describe(DESCRIPTION), tmp_path / str(threads), options=options)
    first = all_rows(tmp_path / "1")
    assert [row["row"] for row in first["valid"]] == sorted(row["row"] for row in first["valid"])
    groups = [row_groups(tmp_path / threads / "train") for threads in ("1", "3")]
    assert len(groups[0]) == 30
    assert groups[0] == groups[1]
    assert all_rows(tmp_path / "3") == first
    vocabularies = [tmp_path / threads / "vocab" / "user.parquet" for threads in ("1", "3")]
    assert vocabularies[0].read_bytes() == vocabularies[1].read_bytes()


def test_splits_and_order_are_the_stated_hash_of_the_position(source: Path, tmp_path: Path) -> None:
    options = PrepareOptions(shuffle_seed=5)
    prepare_files([source], describe(DESCRIPTION), tmp_path / "out", options=options)
    chance, order = row_key(0, 3), row_key(1, 5)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for position in range(300_000):
        share = chance(position) / 2**64
        parts["train" if share < 0.8 else "valid" if share < 0.9 else "test"].append(position)
    assert rows_in(tmp_path / "out", "valid") == parts["valid"]
    assert rows_in(tmp_path / "out", "test") == parts["test"]
    assert rows_in(tmp_path / "out", "train") == sorted(parts["train"], key=order)


def test_train_is_shuffled_over_the_whole_file(out: Path) -> None:
    train = rows_in(out, "train")
    assert len(train) == pytest.approx(240_000, rel=0.01)
    assert len(set(train)) == len(train)
    # Every tenth of the output holds a like share of every tenth of the input: a chi-square of 81
    # degrees of freedom stays below 150 but for one seed in a million.
    cells = Counter((10 * k // len(train), row // 30_000) for k, row in enumerate(train))
    expected = len(train) / 100
    assert len(cells) == 100
    assert sum((count - expected) ** 2 / expected for count in cells.values()) < 150


def test_seeds_change_what_they_name(source: Path, out: Path, tmp_path: Path) -> None:
    found = {(3, 0): rows_in(out, "train")}
    for split_seed, order_seed in ((3, 1), (4, 0)):
        out = tmp_path / f"{split_seed}{order_seed}"
        described = describe(DESCRIPTION, split={"by": "random", "seed": split_seed})
        options = PrepareOptions(shuffle_seed=order_seed)
        prepare_files([source], described, out, options=options)
        found[split_seed, order_seed] = rows_in(out, "train")
    assert found[3, 0] != found[3, 1]
    assert set(found[3, 0]) == set(found[3, 1]) != set(found[4, 0])


def test_unshuffled_train_keeps_the_order_of_the_files(source: Path, tmp_path: Path) -> None:
    described = describe(DESCRIPTION, shuffle=False)
    prepare_files([source], described, tmp_path / "out", options=small_files())
    train = rows_in(tmp_path / "out", "train")
    assert train == sorted(train)


def test_train_split_by_time_is_in_the_order_of_time(tmp_path: Path) -> None:
    times = [(7919 * k) % 1000 // 3 for k in range(5000)]  # with ties
    rows = [["row", "user", "time"], *([k, 1, time] for k, time in enumerate(times))]
    source = write_text(tmp_path / "raw.csv", rows)
    split = {"by": "time", "column": "time", "valid_from": 200, "test_from": 300}
    prepare_files([source], describe(DESCRIPTION, split=split), tmp_path / "out")
    expected = sorted((time, k) for k, time in enumerate(times) if time < 200)
    assert rows_in(tmp_path / "out", "train") == [k for _, k in expected]
    assert {times[k] >= 300 for k in rows_in(tmp_path / "out", "test")} == {True}
    described = describe(DESCRIPTION, split=split, shuffle=True)
    prepare_files([source], described, tmp_path / "mixed")
    mixed = rows_in(tmp_path / "mixed", "train")
    assert mixed != [k for _, k in expected]
    assert set(mixed) == {k for _, k in expected}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    times=st.lists(st.integers(-(10**15), 10**15) | st.integers(0, 5), min_size=1, max_size=60),
    cuts=st.tuples(st.integers(1, 10), st.integers(0, 10)).filter(lambda c: sum(c) <= 10),
)
def test_shares_of_time_cut_where_the_sorted_times_do(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], cuts: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("shares")
    rows = [["row", "user", "time"], *([k, 1, time] for k, time in enumerate(times))]
    source = write_text(folder / "raw.csv", rows)
    shares = [cuts[0] / 10, cuts[1] / 10, (10 - sum(cuts)) / 10]
    described: Description = describe(
        DESCRIPTION, split={"by": "time", "column": "time", "shares": shares}
    )
    prepare_files([source], described, folder / "out")
    ordered = sorted(times)
    # A bound lies behind the row that completes a share; rows of one time stay together.
    ends = [ordered[-(-len(times) * cut // 10) - 1] for cut in (cuts[0], sum(cuts))]
    found = {split: sorted(times[k] for k in rows_in(folder / "out", split)) for split in SPLITS}
    assert found["train"] == [time for time in ordered if time <= ends[0]]
    assert found["test"] == [time for time in ordered if time > ends[1]]
    assert sum(map(len, found.values())) == len(times)
