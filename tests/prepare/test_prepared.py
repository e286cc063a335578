import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import Feature, Schema, Task, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.prepared import (
    arrow_schema,
    compute_stats,
    open_parquet,
    prepared_folder,
    write_metadata,
)

SCHEMA = Schema(
    features=(
        Feature(name="user_id", kind="id", side="user", num_embeddings=10),
        Feature(name="item_id", kind="id", side="item", num_embeddings=2**31 + 1),
        Feature(name="tags", kind="bag", side="item", num_embeddings=5),
        Feature(name="age", kind="dense"),
    ),
    tasks=(Task(name="click"), Task(name="buy", column="is_buy")),
    sample_weight="weight",
    group="session",
)
TRAIN: dict[str, list[int | None]] = {"click": [1, 0, None, 1], "is_buy": [None, None, 0, 1]}
TEST: dict[str, list[int | None]] = {"click": [0, 0], "is_buy": [None, None]}


def _write_rows(path: Path, labels: dict[str, list[int | None]], user_ids: list[int]) -> None:
    size = len(user_ids)
    columns = {
        "user_id": user_ids,
        "item_id": [7] * size,
        "tags": [[1, 2]] * size,
        "age": [0.5] * size,
        **labels,
        "weight": [1.0] * size,
        "session": [0] * size,
    }
    with open_parquet(path, arrow_schema(SCHEMA)) as file:
        file.write_table(pa.table(columns, schema=arrow_schema(SCHEMA)))


def _write_splits(folder: Path) -> None:
    _write_rows(folder / "train" / "0.parquet", TRAIN, [1, 2, 3, 3])
    _write_rows(folder / "test" / "0.parquet", TEST, [3, 4])


def _listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_finished_folder_appears_under_its_name_only(tmp_path: Path) -> None:
    out = tmp_path / "new" / "set"
    with prepared_folder(out) as folder:
        assert not out.exists()
        _write_splits(folder)
        stats = write_metadata(
            folder, SCHEMA, user_column="user_id", item_column="item_id", extra={"note": 1}
        )
    assert _listing(out.parent) == {"set"}
    assert _listing(out) == {"train", "test", "schema.json", "stats.json"}
    assert load_schema(out) == SCHEMA
    assert json.loads((out / "stats.json").read_text()) == stats
    assert stats["note"] == 1


def _fail_halfway(out: Path, *, overwrite: bool) -> None:
    with prepared_folder(out, overwrite=overwrite) as folder:
        _write_splits(folder)
        raise ZeroDivisionError


def test_error_leaves_nothing_behind_and_the_old_folder_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(out, overwrite=False)
    assert _listing(tmp_path) == set()

    with prepared_folder(out) as folder:
        SCHEMA.save(folder)
    with pytest.raises(ZeroDivisionError):
        _fail_halfway(out, overwrite=True)
    assert _listing(tmp_path) == {"set"}
    assert _listing(out) == {"schema.json"}


def test_occupied_folder_is_replaced_only_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    with prepared_folder(out) as folder:  # empty: nothing to lose
        SCHEMA.save(folder)
    with pytest.raises(UserError, match="set' is not empty"), prepared_folder(out):
        raise AssertionError("entered")
    with prepared_folder(out, overwrite=True) as folder:
        (folder / "schema.json").write_text("{}")
    assert (out / "schema.json").read_text() == "{}"
    assert _listing(tmp_path) == {"set"}


def test_overwriting_spares_what_no_adapter_wrote(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not a prepared folder"):
        prepared_folder(tmp_path / "home", overwrite=True).__enter__()
    with pytest.raises(UserError, match="is a file"):
        prepared_folder(tmp_path / "home" / "thesis.txt", overwrite=True).__enter__()
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_column_types_follow_the_schema(tmp_path: Path) -> None:
    types = {field.name: str(field.type) for field in arrow_schema(SCHEMA)}
    assert types == {
        "user_id": "int32",
        "item_id": "int64",
        "tags": "list<item: int32>",
        "age": "float",
        "click": "int8",
        "is_buy": "int8",
        "weight": "float",
        "session": "int64",
    }
    _write_rows(tmp_path / "rows.parquet", TRAIN, [1, 2, 3, 3])
    column = pq.ParquetFile(tmp_path / "rows.parquet").metadata.row_group(0).column(0)
    assert column.statistics.max == 3
    assert column.compression == "SNAPPY"


def test_stats_count_observed_labels_and_distinct_ids(tmp_path: Path) -> None:
    odd = tmp_path / "a[b]*'c"  # signs that mean something in a pattern or in SQL
    for split in ("train", "valid", "test"):
        (odd / split).mkdir(parents=True)
    _write_splits(odd)
    stats = compute_stats(odd, SCHEMA, user_column="user_id", item_column="item_id")
    assert stats == {
        "users": 4,
        "items": 1,
        "dense": {"age": {"mean": 0.5, "std": 0.0, "min": 0.5, "max": 0.5}},
        "samples": {"train": 4, "test": 2},
        "fields": 4,
        "tasks": ["click", "buy"],
        "positive_ratio": {"click": 2 / 5, "buy": 1 / 2},
        "positive_ratio_by_split": {
            "train": {"click": 2 / 3, "buy": 1 / 2},
            "test": {"click": 0.0, "buy": None},
        },
        "observed": {"click": 5, "buy": 2},
        "observed_by_split": {"train": {"click": 3, "buy": 2}, "test": {"click": 2, "buy": 0}},
    }


def test_stats_hold_when_files_of_a_split_declare_nulls_differently(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
    _write_splits(tmp_path)
    columns = arrow_schema(SCHEMA)
    strict = pa.schema([field.with_nullable(False) for field in columns])
    rows = pq.read_table(tmp_path / "test" / "0.parquet").to_pydict()
    rows["is_buy"] = [1, 1]
    with open_parquet(tmp_path / "train" / "-first.parquet", strict) as file:
        file.write_table(pa.table(rows, schema=strict))
    stats = compute_stats(tmp_path, SCHEMA, user_column="user_id", item_column="item_id")
    assert stats["observed_by_split"]["train"] == {"click": 5, "buy": 4}
    assert stats["positive_ratio_by_split"]["train"]["buy"] == 3 / 4
