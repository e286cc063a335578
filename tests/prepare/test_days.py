"""Days added to a prepared folder one by one, against the same days prepared at once."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from stem_torchrec.cli import main
from stem_torchrec.data.identity import compare_features
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.encoder.encode import load_raw_encoder
from stem_torchrec.prepare.tables.prepare_files import extend_files, prepare_files
from tests.prepare.raw_tables import Row, describe, files_under, vocabulary, write_text
from tests.prepare.test_prepare_restart import contents, killed_in
from tests.support.kuairand_days import DAYS as DAYS_OF_SLICE
from tests.support.kuairand_days import SLICE, prepare_day_after_day, write_raw_days

DESCRIPTION = """
features:
  - {name: user, side: user}
  - {name: item, side: item}
  - {name: last, table: item}
  - {name: tags, kind: bag, separator: "|"}
  - {name: shop, encoding: hash, num_embeddings: 50}
  - {name: price, kind: dense}
labels: {buy: bought}
group: user
user: user
item: item
split: {by: day, column: day, valid: ["2024-01-04"], test: ["2024-01-05:2024-01-06"]}
min_count: 3
"""
HEADER = ["day", "user", "item", "last", "tags", "shop", "price", "bought"]
DAYS = {
    "2024-01-01": [
        *[[7, 10, 11, "x|y", "s", 0.5, 1]] * 3,
        *[[8, 11, 12, "x", "t", 1.5, 0]] * 2,
    ],
    # User 8 and tag z become frequent; item 12 by its places in two columns.
    "2024-01-02": [[8, 12, 10, "z|z", "s", 2, 1], [9, 13, 10, "z", "u", "", 0]],
    # Item b is a text: those of the days before are no longer held as integers.
    "2024-01-03": [*[["9", "b", 13, "w", "s", 3, 0]] * 3, [9.0, 13, "b", "", "t", 1, 1]],
    "2024-01-04": [[7, 10, "b", "x|w|never", "s", 1, 1], [99, 98, 97, "", "s", 1, 0]],
    "2024-01-05": [[9, "b", 12, "z", "t", 1, 1]],
}


def write_days(folder: Path, days: Sequence[str], name: str = "raw.csv") -> Path:
    return write_text(folder / name, [HEADER, *([day, *row] for day in days for row in DAYS[day])])


def rows_of_days(folder: Path) -> dict[str, list[Row]]:
    """The rows of each day, whatever split it is in."""
    files = sorted(folder.glob("*/date=*/part-00000.parquet"))
    return {
        f"{path.parts[-3]} {path.parent.name}": pq.ParquetFile(path).read().to_pylist()
        for path in files
    }


def prepared(folder: Path, days: Sequence[str]) -> Path:
    """The days one by one."""
    folder.mkdir(exist_ok=True)
    first, *others = days
    prepare_files([write_days(folder, [first])], describe(DESCRIPTION), folder / "sets" / "days")
    for day in others:
        extend_files([write_days(folder, [day])], folder / "sets" / "days")
    return folder / "sets" / "days"


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("at_once")
    prepare_files([write_days(folder, [*DAYS])], describe(DESCRIPTION), folder / "days")
    return folder / "days"


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("one_by_one"), [*DAYS])


def test_ids_do_not_depend_on_whether_days_come_at_once(at_once: Path, one_by_one: Path) -> None:
    for feature in ("user", "item", "tags"):
        for kind in ("vocab", "rare"):
            files = [pq.read_table(f / kind / f"{feature}.parquet") for f in (at_once, one_by_one)]
            assert files[0].equals(files[1]), (kind, feature, *files)
    assert vocabulary(one_by_one, "user") == {7: 1, 8: 2, 9: 3}
    assert vocabulary(one_by_one, "item") == {"11": 1, "10": 2, "12": 3, "13": 4, "b": 5}
    assert vocabulary(one_by_one, "tags") == {"x": 1, "y": 2, "z": 3, "w": 4}
    assert load_schema(one_by_one) == load_schema(at_once)
    noted = [json.loads((folder / "days.json").read_text()) for folder in (one_by_one, at_once)]
    for key in ("days", "rare", "text_tables", "raw_rows"):
        assert noted[0][key] == noted[1][key]
    stats = [json.loads((folder / "stats.json").read_text()) for folder in (one_by_one, at_once)]
    # Rows of the days before a value became frequent have id 0 where days come one by one.
    shares = [found.pop("features") for found in stats]
    assert shares[0]["user"]["id_0_share"]["test"] == shares[1]["user"]["id_0_share"]["test"]
    assert stats[0] == stats[1]


def test_rows_hold_the_ids_that_were_known_on_their_day(at_once: Path, one_by_one: Path) -> None:
    known = {"01": (1, 2, 2), "02": (2, 3, 3), "03": (3, 5, 4), "04": (3, 5, 4), "05": (3, 5, 4)}
    expected = rows_of_days(at_once)
    assert list(expected) == [
        "test date=2024-01-05",
        *(f"train date=2024-01-0{day}" for day in (1, 2, 3)),
        "valid date=2024-01-04",
    ]
    for day, rows in expected.items():
        user, item, tag = known[day[-2:]]
        for row in rows:
            for name, last in (("user", user), ("item", item), ("last", item)):
                row[name] *= row[name] <= last
            row["tags"] = [value * (value <= tag) for value in row["tags"]]
    assert str(rows_of_days(one_by_one)) == str(expected)
    assert check_folder(one_by_one).faults == []
    for split in SPLITS:
        check_split(one_by_one, split, load_schema(one_by_one))


def test_every_day_extends_the_schema_before(tmp_path: Path) -> None:
    folder, description = tmp_path / "days", describe(DESCRIPTION)
    prepare_files([write_days(tmp_path, ["2024-01-01"])], description, folder)
    for day in list(DAYS)[1:]:
        before = load_schema(folder)
        extend_files([write_days(tmp_path, [day])], folder, description)
        now = load_schema(folder)
        pairs = [*zip(before.features, now.features, strict=True)]
        assert compare_features(pairs, "the day before", folder).unknown == []


def test_the_encoder_knows_new_values(one_by_one: Path) -> None:
    rows = {"user": [9, 5], "item": ["b", "10"], "last": ["13", "98"], "tags": ["w|z", "none"]}
    rows |= {"shop": ["s", "t"], "price": [1.0, 2.0]}
    encoded = load_raw_encoder(one_by_one).encode(pa.table(rows)).to_pydict()
    assert (encoded["user"], encoded["item"], encoded["last"]) == ([3, 0], [5, 2], [4, 0])
    assert encoded["tags"] == [[4, 3], [0]]


def test_frozen_counts_and_numbers_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "days"
    prepare_files([write_days(tmp_path, ["2024-01-01"])], describe(DESCRIPTION), folder)
    before = load_schema(folder)
    extend_files([write_days(tmp_path, ["2024-01-02"])], folder, frozen=True)
    assert load_schema(folder) == before
    extend_files([write_days(tmp_path, ["2024-01-05"])], folder)  # no row of train
    # User 8 had become frequent on the frozen day.
    assert vocabulary(folder, "user") == {7: 1, 8: 2}


def test_the_command_names_the_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described, out = tmp_path / "describe.yaml", str(tmp_path / "days")
    described.write_text("{features: [{name: a}], labels: {y: y}, split: {by: day}, min_count: 1}")
    other = tmp_path / "other.yaml"
    other.write_text("{features: [{name: a}], labels: {y: y}, split: {by: random}}")
    source = write_text(tmp_path / "raw.csv", [["a", "y"], [1, 0], [2, 1]])
    command = ["prepare", "csv", "--source", str(source)]
    assert main([*command, "--describe", str(described), "--out", out, "--day", "20240101"]) == 0
    assert main([*command, "--extend", out, "--day", "2024-01-02"]) == 0
    assert files_under(tmp_path / "days" / "train") == {"date=2024-01-01", "date=2024-01-02"}
    capsys.readouterr()
    for options, message in (
        (["--extend", out], "--day: needed"),
        (["--extend", out, "--day", "2024-01-02"], "2024-01-02 is in"),
        (["--extend", out, "--day", "2024-01-03", "--overwrite"], "--overwrite: not with --extend"),
        (["--out", out + "2", "--day", "2024-01-03"], "--describe: needed"),
        (
            ["--out", out + "2", "--describe", str(other), "--day", "20240103"],
            "--day: only a split",
        ),
        (["--extend", "s3://bucket/days", "--day", "2024-01-03"], "lies in a store"),
    ):
        assert main([*command, *options]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("days", "changed", "message"),
    [
        (["2024-01-02"], {}, "2024-01-02 is in .* already, in train; a day is added once"),
        (["2024-01-04", "2024-01-03"], {}, None),
        (["2024-01-01"], {}, "2024-01-01 lies before 2024-01-02, the last day"),
        (["2024-01-03"], {"min_count": 2}, "min_count is 2, but .* was prepared with 3"),
        (
            ["2024-01-03"],
            {"features": yaml.safe_load(DESCRIPTION.replace("50", "60"))["features"]},
            "features.shop.num_embeddings is 60, but .* was prepared with 50",
        ),
        (["2024-01-03"], {"labels": {"buy": "price > 1"}}, "labels.buy is 'price > 1'"),
        (["2024-01-03"], {"split": {"by": "random"}}, "split.column is None, but .* with 'day'"),
        (["2024-01-03"], {"tables": {"t": {"source": "x.csv", "on": "day"}}}, "tables.t is new, "),
        (["2024-01-03"], {"split": {"by": "day", "column": "day"}}, None),
    ],
)
def test_what_does_not_follow_is_refused(
    tmp_path: Path, days: list[str], changed: dict[str, Any], message: str | None
) -> None:
    folder = tmp_path / "sets" / "days"
    prepare_files([write_days(tmp_path, ["2024-01-02"])], describe(DESCRIPTION), folder)
    before = contents(folder)
    description = describe(DESCRIPTION, **changed)
    source = write_days(tmp_path, days)
    if message is None:
        extend_files([source], folder, description)
        return
    with pytest.raises(UserError, match=message):
        extend_files([source], folder, description)
    assert contents(folder) == before
    assert files_under(tmp_path / "sets") == {"days"}


@pytest.mark.parametrize(
    ("file", "keep", "message"),
    [
        ("vocab/item.parquet", 1, "vocab/item.parquet: has shrunk to 1 values; .* has 2"),
        ("vocab/item.parquet", [1, 0], "vocab/item.parquet: its values are not those whose hash"),
        ("rare/user.parquet", 0, "rare/user.parquet: is missing, or not what the last day has"),
        ("days.json", None, "days.json' is missing; days are added to a folder that"),
        ("days.json", "{}", "days.json: damaged, or of another version"),
    ],
)
def test_a_folder_that_was_edited_is_refused(
    tmp_path: Path, file: str, keep: Any, message: str
) -> None:
    folder = tmp_path / "days"
    prepare_files([write_days(tmp_path, ["2024-01-01"])], describe(DESCRIPTION), folder)
    edited = folder / file
    if keep is None:
        edited.unlink()
    elif isinstance(keep, str):
        edited.write_text(keep)
    else:
        table = pq.read_table(edited)
        rows = table.take(keep) if isinstance(keep, list) else table.slice(0, keep)
        if "id" in rows.column_names:
            rows = rows.set_column(1, "id", pa.array(range(1, len(rows) + 1), pa.int32()))
        pq.write_table(rows, edited)
    if not message.startswith("days.json' is missing"):
        assert check_folder(folder).faults
    with pytest.raises(UserError, match=message):
        extend_files([write_days(tmp_path, ["2024-01-02"])], folder)


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    described = "{features: [{name: a}], labels: {y: y}, split: {by: day, column: day}}"
    described = describe(described, format={"type": "parquet"}, min_count=1)
    for day, value in (("2024-01-01", 1), ("2024-01-02", "1")):
        table = pa.table({"a": [value], "y": [1], "day": [day]})
        pq.write_table(table, tmp_path / f"{day}.parquet")
    prepare_files([tmp_path / "2024-01-01.parquet"], described, tmp_path / "days")
    message = "column 'a' is VARCHAR; on the days in .* it was BIGINT"
    with pytest.raises(UserError, match=message):
        extend_files([tmp_path / "2024-01-02.parquet"], tmp_path / "days", described)


@pytest.mark.parametrize("stage", ["ids of item", "take over", "exchange"])
def test_a_day_that_is_killed_leaves_the_folder_and_goes_on(
    tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = DAYS
    folder = prepared(tmp_path, [first])
    before = contents(folder)
    source = write_days(tmp_path, [second])
    command = ["prepare", "csv", "--source", str(source), "--extend", str(folder)]
    killed_in(stage, command)
    assert contents(folder) == before
    assert main(command) == 0
    assert capsys.readouterr().err.startswith("goes on") == (stage != "exchange")
    expected = prepared(tmp_path / "expected", [first, second])
    assert contents(folder) == contents(expected)
    assert files_under(tmp_path / "sets") == {"days"}


def test_a_system_that_cannot_exchange_folders_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sets" / "days"
    prepare_files([write_days(tmp_path, ["2024-01-01"])], describe(DESCRIPTION), folder)
    monkeypatch.setattr("stem_torchrec.prepare.engine.building.exchanged", lambda *_: False)
    building = folder.with_name(".days.building")
    building.mkdir()
    folder.rename(building / "replaced")  # as a kill between the two renames leaves it
    extend_files([write_days(tmp_path, ["2024-01-02"])], folder)
    assert files_under(folder / "train") == {"date=2024-01-01", "date=2024-01-02"}
    assert files_under(tmp_path / "sets") == {"days"}


def test_transforms_stay_those_of_the_first_day_and_counts_go_on(tmp_path: Path) -> None:
    features = [
        {"name": "user"},
        {"name": "dear", "kind": "dense", "column": "price", "transform": "standard"},
        {"name": "sold", "kind": "dense", "column": "item", "transform": "count"},
    ]
    described = describe(DESCRIPTION, features=features, item=None)
    folder = tmp_path / "days"
    prepare_files([write_days(tmp_path, ["2024-01-01"])], described, folder)
    before = load_raw_encoder(folder).encoder.features[1].transform
    for day in ("2024-01-02", "2024-01-03"):
        extend_files([write_days(tmp_path, [day])], folder)
    encoder = load_raw_encoder(folder)
    assert encoder.encoder.features[1].transform == before
    assert not check_folder(folder).faults
    raw = pa.table({"user": [7] * 4, "price": [1.0] * 4, "item": ["10", "12", "b", "never"]})
    sold = encoder.encode(raw).column("sold").to_pylist()
    assert sold == pytest.approx([math.log1p(count) for count in (3, 1, 3, 0)])
    counts = folder / "vocab/sold.parquet"
    pq.write_table(pq.read_table(counts).slice(1), counts)
    with pytest.raises(UserError, match=r"vocab/sold.parquet: is missing, or not what the last"):
        extend_files([write_days(tmp_path, ["2024-01-05"])], folder)
    assert check_folder(folder).faults


@pytest.mark.slow
@pytest.mark.skipif(not SLICE.is_dir(), reason=f"no KuaiRand slice in {SLICE}")
def test_a_week_of_kuairand_has_the_ids_of_the_week_at_once(tmp_path: Path) -> None:
    log = write_raw_days(tmp_path)
    prepare_day_after_day(log, tmp_path / "days", [*DAYS_OF_SLICE, "2022-04-15", "2022-04-16"])
    sources = [str(log / f"date=2022-04-{day:02}") for day in range(8, 17)]
    command = ["prepare", "csv", "--source", *sources, "--describe", str(tmp_path / "days.yaml")]
    assert main([*command, "--out", str(tmp_path / "at_once")]) == 0
    schemas = [load_schema(tmp_path / name) for name in ("days", "at_once")]
    assert schemas[0] == schemas[1]
    known = {feature.name: feature.num_embeddings for feature in schemas[0].sparse}
    assert (known["user_id"], known["video_id"]) == (408, 599)
    assert check_folder(tmp_path / "days").faults == []
    stats = json.loads((tmp_path / "days" / "stats.json").read_text())
    assert stats["samples"] == {"train": 15552, "valid": 2141, "test": 3265}


def test_a_day_may_have_side_tables_of_its_own(tmp_path: Path) -> None:
    features = [{"name": "user"}, {"name": "city", "side": "user"}]
    for day, city in (("2024-01-01", "rome"), ("2024-01-02", "oslo")):
        users = write_text(tmp_path / f"users {day}.csv", [["user", "city"], [7, city], [8, city]])
        table = {"source": str(users), "on": "user", "missing": "allow"}
        described = describe(
            DESCRIPTION, features=features, item=None, min_count=2, tables={"users": table}
        )
        source = write_days(tmp_path, [day])
        if day == "2024-01-01":
            prepare_files([source], described, tmp_path / "days")
    write_text(source, [HEADER, *(["2024-01-02", *row] for row in DAYS["2024-01-01"])])
    extend_files([source], tmp_path / "days", described)
    assert vocabulary(tmp_path / "days", "city") == {"rome": 1, "oslo": 2}
