"""``prepare --check``: every fault by name, and nothing of a folder that is right."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.cli import main
from stem_torchrec.data.schema import Feature, Schema, Task
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.engine.prepared import compute_stats, write_metadata
from stem_torchrec.prepare.engine.stages import Unseen
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", num_embeddings=5, encoding="vocabulary"),
        Feature(name="hist", kind="bag", num_embeddings=50),
        Feature(name="price", kind="dense"),
    ),
    tasks=(Task(name="click", column="is_click"), Task(name="again", column="is_click")),
    sample_weight="w",
    group="user",
)
FILES = {"train": ("a", "b"), "test": ("a",)}


def columns(**changed: Any) -> pa.Table:
    made = {
        "user": pa.array([0, 1, 2, 4], pa.int32()),
        "hist": pa.array([[1, 2], [], None, [3, None]]),
        "price": pa.array([0.5, None, float("nan"), 2]),
        "is_click": pa.array([0, 1, None, 1], pa.int8()),
        "w": pa.array([1.0, 0.0, 2.0, 1.0]),
    }
    return pa.table({**made, **changed})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two row groups of two rows per file."""
    for split, names in FILES.items():
        (tmp_path / split).mkdir()
        for name in names:
            write(tmp_path, columns(), f"{split}/{name}.parquet")
    (tmp_path / "vocab").mkdir()
    write_vocabulary(tmp_path, [1, 2, 3, 4])
    write_metadata(tmp_path, SCHEMA, user_column="user", item_column="price")
    return tmp_path


def write(folder: Path, table: pa.Table, name: str = "train/b.parquet") -> None:
    # No statistics: what they would show is told by the values.
    pq.write_table(table, folder / name, row_group_size=2, write_statistics=False)


def write_vocabulary(folder: Path, ids: Any, name: str = "user") -> None:
    table = pa.table({"value": [str(i) for i in range(len(ids))], "id": ids})
    pq.write_table(table, folder / "vocab" / f"{name}.parquet")


def with_stats(folder: Path) -> Path:
    """Statistics of what is there now, so that they are no fault."""
    stats = compute_stats(folder, SCHEMA, user_column="user", item_column="price")
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


def test_a_right_folder_gives_its_counts(folder: Path) -> None:
    checked = check_folder(folder)
    assert checked.faults == []
    found = [(s.name, s.rows, s.files, s.row_groups) for s in checked.splits]
    assert found == [("train", 8, 2, 4), ("test", 4, 1, 2)]
    for split in checked.splits:
        assert split.positive_ratio("click") == split.positive_ratio("again") == 2 / 3
    shutil.rmtree(folder / "vocab")
    (folder / "stats.json").unlink()
    assert check_folder(folder).faults == []


@pytest.mark.parametrize(
    ("column", "values", "fault"),
    [
        ("user", [0, 1, 5, 4], "row group 1: feature 'user' has id 5; allowed: 0 to 4"),
        ("user", [0, -1, 2, 4], "row group 0: feature 'user' has id -1"),
        ("hist", [[1], None, [3, 50], []], "row group 1: feature 'hist' has id 50"),
        ("price", [0, 1, 2, float("inf")], "row group 1: dense feature 'price' has value inf"),
        ("is_click", [0, 2, 1, 1], "row group 0: label column 'is_click' has value 2; allowed"),
        ("w", [1, 1, None, 1], "row group 1: sample_weight column 'w' has value nan; allowed"),
        ("w", [1, -1, 1, 1], "row group 0: sample_weight column 'w' has value -1.0"),
    ],
)
def test_a_value_that_is_not_allowed(
    folder: Path, column: str, values: list[Any], fault: str
) -> None:
    write(folder, columns(**{column: pa.array(values, columns()[column].type)}))
    (found,) = check_folder(folder).faults
    assert found.startswith(f"{folder / 'train' / 'b.parquet'}, {fault}")


def test_every_fault_is_named(folder: Path) -> None:
    write(folder, columns(user=pa.array([9, 1, 7, 1]), w=pa.array([1.0, 1, -3, 1])))
    write(folder, columns().drop_columns(["price"]), "test/a.parquet")
    write_vocabulary(folder, [1, 1])
    (folder / "stats.json").write_text('{"samples": {"train": 7, "test": 4, "valid": 3}}')
    faults = check_folder(folder).faults
    for part in ("id 9", "id 7", "-3.0", "'price' is missing; it has user", "id 1 stands for"):
        assert [part in fault for fault in faults].count(True) == 1, part
    assert any("stats.json: samples.train is 7, but the files have 8" in f for f in faults)
    assert any("samples.valid is 3, but there is no such split" in f for f in faults)
    assert len(faults) == 7


def test_a_type_that_changes_names_both_files(folder: Path) -> None:
    write(folder, columns(user=pa.array(["0"] * 4)))
    faults = check_folder(folder).faults
    assert len(faults) == 2  # the column is the group, too
    assert "b.parquet: id column 'user' has type string; allowed: any integer" in faults[0]
    assert "b.parquet: group column 'user' has type string" in faults[1]
    assert faults[0].endswith(f"; {folder / 'train' / 'a.parquet'} has int32")
    # Another width is none, and neither is another kind of list.
    write(folder, columns(user=pa.array([0] * 4, pa.int64()), hist=pa.array([[1]] * 4)))
    assert check_folder(with_stats(folder)).faults == []
    # A type that is allowed, but is not that of the other file.
    write(folder, columns(price=pa.array([0] * 4), is_click=pa.array([True, False, None, True])))
    faults = check_folder(with_stats(folder)).faults
    assert len(faults) == 2
    assert "dense column 'price' has type int64; " in faults[0]
    assert faults[0].endswith("a.parquet has double")
    assert "label column 'is_click' has type bool; " in faults[1]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def damage_prices(file: Path) -> None:
    """Overwrite the pages of one column; the footer stays."""
    chunk = pq.read_metadata(file).row_group(1).column(2)
    assert chunk.path_in_schema == "price"
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (cut, "b.parquet: cannot be read as Parquet"),
        (damage_prices, "b.parquet, row group 1, column 'price': cannot be read as Parquet"),
    ],
)
def test_a_damaged_file(folder: Path, spoil: Callable[[Path], None], fault: str) -> None:
    spoil(folder / "train" / "b.parquet")
    faults = check_folder(folder).faults
    assert fault in faults[0]


@pytest.mark.parametrize(
    ("ids", "fault"),
    [
        ([1, 2, 3, 5], "user.parquet: id 5; allowed: 1 to 4"),
        ([0, 1, 2, 3], "user.parquet: id 0; allowed: 1 to 4"),
        ([1, 2, 3, 3], "id 3 stands for several values"),
        ([1, 2, 3, None], "column 'id' has a null"),
        ([1, 2, 3], "3 entries, but feature 'user' has num_embeddings 5"),
        ([0.5, 1.0], "column 'id' has type double"),
    ],
)
def test_a_vocabulary_that_does_not_fit(folder: Path, ids: list[Any], fault: str) -> None:
    write_vocabulary(folder, ids)
    (found,) = check_folder(folder).faults
    assert fault in found


def test_a_damaged_vocabulary(folder: Path) -> None:
    cut(folder / "vocab" / "user.parquet")
    (fault,) = check_folder(folder).faults
    assert "user.parquet: cannot be read as Parquet" in fault


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("samples", {"train": 8}, "samples.test is None, but the files have 4"),
        ("fields", 2, "fields is 2, but the files have 3"),
        ("tasks", ["click"], "tasks is ['click'], but the files have ['click', 'again']"),
        ("observed_by_split", {"train": {"click": 5, "again": 6}}, "train.click is 5, but"),
        ("positive_ratio_by_split", {"train": {"click": 0.1, "again": 2 / 3}}, "click is 0.1, but"),
    ],
)
def test_stats_that_tell_something_else(folder: Path, key: str, value: Any, fault: str) -> None:
    stats = json.loads((folder / "stats.json").read_text())
    whole = {**stats[key], **value} if key.endswith("by_split") else value
    (folder / "stats.json").write_text(json.dumps(stats | {key: whole}))
    (found,) = check_folder(folder).faults
    assert "stats.json: " in found
    assert fault in found


def test_stats_that_are_no_json(folder: Path) -> None:
    (folder / "stats.json").write_text("{")
    (fault,) = check_folder(folder).faults
    assert "stats.json: not valid JSON" in fault


def test_splits_that_are_missing_or_empty(folder: Path) -> None:
    (folder / "stats.json").unlink()
    (folder / "valid").mkdir()
    shutil.rmtree(folder / "train")
    write(folder, columns().slice(0, 0), "test/a.parquet")
    faults = check_folder(folder).faults
    assert len(faults) == 3
    assert "train' is not a folder" in faults[0]
    assert "valid' has no *.parquet file" in faults[1]
    assert "test: the files have no rows" in faults[2]
    assert not any("data.path" in fault for fault in faults)


def test_no_schema_to_check_against(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"schema\.json' is missing"):
        check_folder(tmp_path)


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "no faults" in out
    assert "0.6667" in out
    write(folder, columns(user=pa.array([9, 1, 7, 1])))
    assert main(["prepare", "--check", str(folder)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder}: faults found: 2\n")
    assert "id 9" in message
    assert "id 7" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a source, or --check DIR"),
        (["--check", "nowhere"], "'nowhere' is not a folder"),
        (["--check", "x", "--min_count=2"], "unexpected argument '--min_count=2'"),
        (["--check", "x", "synthetic", "--out", "y"], "--check takes no source"),
    ],
)
def test_mistakes_of_the_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_an_adapter_writes_is_right(tmp_path: Path) -> None:
    config = SyntheticConfig(
        train_rows=300, valid_rows=50, test_rows=50, num_users=20, num_items=20, num_bags=1
    )
    prepare_synthetic(config, tmp_path / "out")
    assert check_folder(tmp_path / "out").faults == []


def test_progress_is_shown_on_a_terminal_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--check", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    assert main(["prepare", "--check", str(folder)]) == 0
    shown = capsys.readouterr().err
    assert "check train" in shown
    assert "check vocabularies" in shown


def test_the_share_that_is_read_grows_to_the_whole(folder: Path) -> None:
    shares: list[float] = []

    class Asking(Unseen):
        @contextmanager
        def stage(self, name: str, done: Callable[[], float]) -> Iterator[None]:
            shares.append(done())
            yield
            shares.append(done())

    check_folder(folder, Asking())
    before, after = shares[:4:2], shares[1:4:2]
    assert before == [-1, -1]
    # Of a file's bytes the footer is none of a row group.
    assert all(10 < share <= 100 for share in after)
