"""The adapter on a small release written here, and on a slice of the real one where it is found.

What is expected is worked out with csv and dicts, without DuckDB.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import SPLITS, load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.check import check_folder
from stem_torchrec.prepare.engine.options import KuaiRandSplit
from stem_torchrec.prepare.kuairand.days import last_days
from stem_torchrec.prepare.kuairand.features import CORE_VIDEO_FIELDS, TASKS
from stem_torchrec.prepare.kuairand.prepare import KuaiRandConfig, prepare_kuairand
from tests.prepare.raw_tables import files_under
from tests.support.kuairand_release import LOG_COLUMNS, USER_COLUMNS, Row, Source

SLICE = Path(__file__).parents[2].parent / "shared" / "data" / "kuairand"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "KuaiRand-27K")


def _rows(folder: Path, split: str) -> list[Row]:
    return [
        row
        for path in sorted((folder / split).iterdir())
        for row in pq.read_table(path).to_pylist()
    ]


def _vocabulary(counts: Counter, min_count: int) -> dict[Any, int]:
    frequent = [(value, count) for value, count in counts.items() if count >= min_count]
    frequent.sort(key=lambda entry: (-entry[1], entry[0]))
    return {value: number for number, (value, _) in enumerate(frequent, start=1)}


def _log_bucket(value: float, num_buckets: int) -> int:
    return min(1 + math.floor(2 * math.log2(1 + value)), num_buckets - 1)


def _expected_vocabularies(source: Source, train: list[Row], min_count: int) -> dict[str, Any]:
    users = {row["user_id"]: row for row in source.users}
    videos = {row["video_id"]: row for row in source.videos}
    train_users = [users[row["user_id"]] for row in train if row["user_id"] in users]
    train_videos = [videos[row["video_id"]] for row in train if row["video_id"] in videos]
    counts = {
        "user_id": Counter(row["user_id"] for row in train),
        "video_id": Counter(row["video_id"] for row in train),
        "tab": Counter(str(row["tab"]) for row in train),
        "onehot_feat3": Counter(str(user["onehot_feat3"]) for user in train_users),
        "author_id": Counter(str(video["author_id"]) for video in train_videos),
        "tag": Counter(tag for video in train_videos for tag in video["tag"].split(",") if tag),
    }
    return {name: _vocabulary(found, min_count) for name, found in counts.items()}


def _expected_row(row: Row, user: Row | None, video: Row | None, ids: dict[str, Any]) -> Row:
    day = date.fromisoformat(str(row["date"]))
    expected = {
        "group": row["user_id"],
        "user_id": ids["user_id"].get(row["user_id"], 0),
        "video_id": ids["video_id"].get(row["video_id"], 0),
        "tab": ids["tab"].get(str(row["tab"]), 0),
        "hour": 1 + row["hourmin"] // 100,
        "weekday": day.isoweekday(),
        "duration": _log_bucket(row["duration_ms"], 64) if row["duration_ms"] else 0,
        "click": row["is_click"],
        "like": row["is_like"],
        "long_view": None if row["long_view"] == "" else row["long_view"],
        "comment_stay": int(row["comment_stay_time"] > 0),
    }
    expected |= {"onehot_feat3": 0, "fans_user_num": 0}
    expected |= {"author_id": 0, "tag": [], "aspect": 0, "upload_age": 0}
    if user:
        expected["onehot_feat3"] = ids["onehot_feat3"].get(str(user["onehot_feat3"]), 0)
        expected["fans_user_num"] = _log_bucket(user["fans_user_num"], 48)
    if video:
        age = (day - date.fromisoformat(video["upload_dt"])).days
        tags = [tag for tag in video["tag"].split(",") if tag]
        expected["author_id"] = ids["author_id"].get(str(video["author_id"]), 0)
        expected["tag"] = [ids["tag"].get(tag, 0) for tag in tags]
        expected["aspect"] = {1280: 9 - 3, 0: 0, 405: 9 + 3}[video["server_height"]]
        expected["upload_age"] = _log_bucket(age, 32) if age >= 0 else 0
    return expected


def test_rows_equal_an_independent_join(source: Source, tmp_path: Path) -> None:
    prepare_kuairand(source.write(), tmp_path / "out", config=KuaiRandConfig(min_count=8))
    users = {row["user_id"]: row for row in source.users}
    videos = {row["video_id"]: row for row in source.videos}
    train = [row for row in source.logs if row["date"] <= 20220412]
    ids = _expected_vocabularies(source, train, min_count=8)
    expected = [
        _expected_row(row, users.get(row["user_id"]), videos.get(row["video_id"]), ids)
        for row in sorted(source.logs, key=lambda row: (row["date"], row["time_ms"]))
    ]
    found = [row for split in SPLITS for row in _rows(tmp_path / "out", split)]
    assert [{key: row[key] for key in expected[0]} for row in found] == expected
    # The data has what the comparison is about: rare, unseen and missing values.
    for feature in ("user_id", "video_id", "tab", "author_id", "aspect", "upload_age"):
        assert 0 in {row[feature] for row in found}, feature
    for name, known in ids.items():
        table = pq.read_table(tmp_path / "out" / "vocab" / f"{name}.parquet").to_pylist()
        assert {entry["value"]: entry["id"] for entry in table} == known


def test_schema_stats_and_column_types(source: Source, tmp_path: Path) -> None:
    stats = prepare_kuairand(source.write(), tmp_path / "out")
    schema = load_schema(tmp_path / "out")
    assert schema.task_names == tuple(TASKS)
    assert schema.group == "group"
    assert stats == json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stats["samples"] == {"train": 250, "valid": 100, "test": 150}
    assert stats["dates"]["valid"] == [20220413, 20220414]
    assert stats["users"] == len({row["user_id"] for row in source.logs})
    assert stats["items"] == len({row["video_id"] for row in source.logs})
    observed = [row["long_view"] for row in source.logs if row["long_view"] != ""]
    assert stats["observed"]["long_view"] == len(observed) < 500
    assert stats["positive_ratio"]["long_view"] == sum(observed) / len(observed)
    types = {f.name: str(f.type) for f in pq.read_schema(tmp_path / "out/test/20220415.parquet")}
    assert types.pop("tag") == "list<element: int32>"
    assert types.pop("group") == "int64"
    assert {types.pop(task) for task in TASKS} == {"int8"}
    assert set(types.values()) == {"int32"}
    assert list(types) == [f.name for f in schema.features if f.name != "tag"]


EIGHT_TASKS = ("click", "like", "follow", "comment", "forward", "hate", "long_view")
EIGHT_TASKS += ("profile_enter",)


@pytest.mark.parametrize("include_random", [False, True])
def test_both_releases_give_the_same_rows(tmp_path: Path, include_random: bool) -> None:
    """Names, columns and parts as published; only their number of files differs."""
    large = Source(tmp_path / "KuaiRand-27K").write()
    small = Source(tmp_path / "KuaiRand-1K").write_1k()
    config = KuaiRandConfig(
        tasks=EIGHT_TASKS,
        fields="core",
        include_random=include_random,
        min_count=3,
        split="last_5_days",
    )
    for source in (large, small):
        stats = prepare_kuairand(source, tmp_path / f"{source.name}-out", config=config)
        assert (stats["fields"], tuple(stats["tasks"])) == (32, EIGHT_TASKS)
        assert sum(stats["samples"].values()) == (520 if include_random else 500)
    one, other = tmp_path / "KuaiRand-27K-out", tmp_path / "KuaiRand-1K-out"
    assert load_schema(one) == load_schema(other)
    for split in SPLITS:
        assert _rows(one, split) == _rows(other, split)
    assert check_folder(one).faults == []


def test_one_day_each_is_valid_and_test_of_the_release_that_the_paper_counts(
    source: Source, tmp_path: Path
) -> None:
    stats = prepare_kuairand(source.write_1k(), tmp_path / "out")
    assert [stats["samples"][split] for split in SPLITS] == [400, 50, 50]
    splits: tuple[KuaiRandSplit, ...] = ("release", "last_2_days", "last_5_days")
    assert [last_days(split, "1k").test for split in splits] == [1, 1, 3]
    assert [last_days(split, "slice").valid for split in splits] == [2, 1, 2]


def test_the_fields_of_a_full_release(source: Source, tmp_path: Path) -> None:
    prepare_kuairand(source.write(), tmp_path / "all")
    prepare_kuairand(source.folder, tmp_path / "core", config=KuaiRandConfig(fields="core"))
    fields = {
        name: {side: [f.name for f in load_schema(tmp_path / name).features if f.side == side]
               for side in ("user", "item", "context")}
        for name in ("all", "core")
    }  # fmt: skip
    assert [len(names) for names in fields["all"].values()] == [27, 9, 4]
    ranges = [column for column in USER_COLUMNS if column.endswith("_range")]
    assert set(fields["all"]["user"]) == set(USER_COLUMNS) - {*ranges}
    assert len(USER_COLUMNS) == 31
    core = {"user": fields["all"]["user"], "item": [*CORE_VIDEO_FIELDS], "context": []}
    assert fields["core"] == core
    (tag,) = [f for f in load_schema(tmp_path / "core").features if f.kind == "bag"]
    assert (tag.name, tag.pooling) == ("tag", "mean")
    names = [name for side in fields["core"].values() for name in side]
    for split in SPLITS:
        found, expected = (
            [[row[name] for name in names] for row in _rows(tmp_path / folder, split)]
            for folder in ("core", "all")
        )
        assert found == expected


def test_no_outcome_becomes_a_feature(source: Source, tmp_path: Path) -> None:
    """Features stay as they are when every outcome in the log changes."""
    prepare_kuairand(source.write(), tmp_path / "a")
    for row in source.logs:
        for column in LOG_COLUMNS:
            if column.startswith("is_") or column == "long_view":
                row[column] = 1
            elif column in ("play_time_ms", "profile_stay_time", "comment_stay_time"):
                row[column] = 123
    prepare_kuairand(source.write(), tmp_path / "b")
    names = [feature.name for feature in load_schema(tmp_path / "a").features]
    assert not {*names} & {*TASKS, *(column for column, _ in TASKS.values()), "play_time_ms"}
    for split in SPLITS:
        before, after = (
            sorted(json.dumps({name: row[name] for name in names}) for row in _rows(out, split))
            for out in (tmp_path / "a", tmp_path / "b")
        )
        assert before == after


def test_vocabulary_knows_the_train_split_only(source: Source, tmp_path: Path) -> None:
    for row in source.logs:
        if row["date"] > 20220412:
            row["tab"] = 14
    prepare_kuairand(source.write(), tmp_path / "out", config=KuaiRandConfig(min_count=1))
    tabs = pq.read_table(tmp_path / "out" / "vocab" / "tab.parquet").to_pylist()
    assert {entry["value"] for entry in tabs} == {"1", "2", "9"}
    assert sum(entry["count"] for entry in tabs) == 250
    assert {row["tab"] for row in _rows(tmp_path / "out", "test")} == {0}


def test_value_needs_min_count_rows_of_train(source: Source, tmp_path: Path) -> None:
    for row in source.logs[:12]:
        row["tab"] = 7
    source.write()
    for min_count, known in ((12, True), (13, False)):
        config = KuaiRandConfig(min_count=min_count)
        prepare_kuairand(source.folder, tmp_path / "out", config=config, overwrite=True)
        tabs = pq.read_table(tmp_path / "out" / "vocab" / "tab.parquet")["value"].to_pylist()
        assert ("7" in tabs) == known


def test_random_log_is_read_on_demand(source: Source, tmp_path: Path) -> None:
    config = KuaiRandConfig(
        include_random=True, tasks=("like", "click"), train_until=20220410, valid_until=20220411
    )
    stats = prepare_kuairand(source.write(), tmp_path / "out", config=config)
    assert stats["samples"] == {"train": 150, "valid": 50, "test": 320}
    assert stats["tasks"] == ["like", "click"]


def test_log_without_optional_columns(source: Source, tmp_path: Path) -> None:
    for column in ("is_like", "is_hate", "profile_stay_time", "is_rand", "tab"):
        source.log_columns.remove(column)
    prepare_kuairand(source.write(), tmp_path / "out")
    schema = load_schema(tmp_path / "out")
    assert set(TASKS) - set(schema.task_names) == {"like", "hate"}
    assert "tab" not in [feature.name for feature in schema.features]


def _change_log(column: str, value: Any) -> Callable[[Source], None]:
    return lambda source: source.logs[-1].update({column: value})


@pytest.mark.parametrize(
    ("spoil", "config", "message"),
    [
        (lambda s: s.log_columns.remove("hourmin"), {}, "part1.csv: column 'hourmin' is missing"),
        (
            lambda s: s.user_columns.remove("register_days"),
            {},
            "user_features_27k.csv: column 'register_days' is missing; the file has user_id",
        ),
        (lambda s: s.log_columns.remove("is_like"), {"tasks": ("like",)}, "column 'is_like'"),
        (_change_log("is_click", 2), {}, "27k_part2.csv: column is_click: 2 is not 0, 1 or empty"),
        (_change_log("long_view", "yes"), {}, "column long_view: yes is not 0, 1"),
        (_change_log("comment_stay_time", -1), {}, "comment_stay_time: -1 is not a time"),
        (_change_log("user_id", "x"), {}, "column user_id: x is no integer"),
        (_change_log("video_id", ""), {}, "column video_id: nothing is no integer"),
        (_change_log("date", 20221399), {}, "date: 20221399 is no day"),
        (lambda s: s.users.append(s.users[0] | {"onehot_feat0": 9}), {}, "user_id 1 has several"),
        (lambda s: None, {"tasks": ("click", "buy")}, "unknown 'buy'; allowed are click, like"),
        (lambda s: None, {"tasks": ("click", "click")}, "'click' is named twice"),
        (lambda s: None, {"tasks": ()}, "tasks: empty"),
        (
            lambda s: None,
            {"train_until": 20220416, "valid_until": 20220420},
            "split 'test' is empty .* the log has 20220408 to 20220417",
        ),
        (
            lambda s: None,
            {"train_until": 20220401, "valid_until": 20220410},
            "split 'train' is empty",
        ),
        (lambda s: None, {"train_until": 20220410}, "give both or none"),
        (
            lambda s: None,
            {"train_until": 20220412, "valid_until": 20220411},
            "train_until: 20220412 is not before valid_until",
        ),
        (lambda s: None, {"train_until": 16, "valid_until": 18}, "train_until: 16 is no day"),
        (lambda s: s.logs.clear(), {}, "hold no rows"),
        (lambda s: s.logs.__delitem__(slice(200, None)), {}, "needed for a log of few days"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    source: Source,
    tmp_path: Path,
    spoil: Callable[[Source], None],
    config: dict[str, Any],
    message: str,
) -> None:
    spoil(source)
    out = tmp_path / "prepared" / "out"
    with pytest.raises(UserError, match=message):
        prepare_kuairand(source.write(), out, config=KuaiRandConfig(**config))
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_missing_and_mixed_files_are_named(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere' does not exist"):
        prepare_kuairand(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no file log_standard_\*.csv in .*empty"):
        prepare_kuairand(tmp_path / "empty", tmp_path / "out")
    folder = source.write()
    (folder / "data" / "user_features_1k.csv").touch()
    with pytest.raises(UserError, match="mixes the releases 1k, 27k"):
        prepare_kuairand(folder, tmp_path / "out")
    (folder / "data" / "user_features_1k.csv").unlink()
    (folder / "data" / "user_features_27k.csv").unlink()
    with pytest.raises(UserError, match=r"no file user_features\*.csv"):
        prepare_kuairand(folder, tmp_path / "out")


@pytest.mark.skipif(not SLICE.is_dir(), reason=f"no KuaiRand slice in {SLICE}")
def test_slice_of_the_real_log(tmp_path: Path) -> None:
    config = KuaiRandConfig(tasks=("click", "long_view", "comment_stay", "profile_enter"))
    stats = prepare_kuairand(SLICE, tmp_path / "out", config=config)
    assert sum(stats["samples"].values()) == 29_135
    assert stats["samples"]["test"] == 4_136
    assert stats["users"] == 464
    assert stats["dates"] == {
        "train": [20220408, 20220416],
        "valid": [20220417, 20220418],
        "test": [20220419, 20220421],
    }
    with (SLICE / "log_standard_4_08_to_4_21_slice.csv").open() as lines:
        log = sorted(csv.DictReader(lines), key=lambda row: (row["date"], int(row["time_ms"])))
    test = [row for row in log if row["date"] >= "20220419"]
    rows = _rows(tmp_path / "out", "test")
    assert Counter((int(r["user_id"]), int(r["is_click"])) for r in test) == Counter(
        (r["group"], r["click"]) for r in rows
    )
    train_videos = Counter(row["video_id"] for row in log if row["date"] <= "20220416")
    kept = pq.read_table(tmp_path / "out" / "vocab" / "video_id.parquet").to_pylist()
    assert {str(entry["value"]): entry["count"] for entry in kept} == {
        video: count for video, count in train_videos.items() if count >= 10
    }
    with_features = sum(row["author_id"] > 0 or row["upload_age"] > 0 for row in rows)
    assert 0 < with_features < len(rows) / 2


@pytest.mark.parametrize(
    ("line", "replaced", "message"),
    [
        (7, lambda text: text + b",9", r"part2.csv, line 7: 20 columns, expected 19; found '"),
        (7, lambda text: text.rpartition(b",")[0], r"part2.csv, line 7: 18 columns, expected 19"),
        (7, lambda text: b"\xff" + text, r"part2.csv, line 7: not UTF-8; found"),
        (1, lambda text: b"\xff" + text, r"part2.csv, line 1: not UTF-8"),
    ],
)
def test_malformed_lines_are_named(
    source: Source,
    tmp_path: Path,
    line: int,
    replaced: Callable[[bytes], bytes],
    message: str,
) -> None:
    log = source.write() / "data" / "log_standard_4_22_to_5_08_27k_part2.csv"
    lines = log.read_bytes().splitlines()
    lines[line - 1] = replaced(lines[line - 1])
    log.write_bytes(b"\n".join(lines))
    with pytest.raises(UserError, match=message):
        prepare_kuairand(source.folder, tmp_path / "sets" / "out")
    log.write_bytes(b"")
    with pytest.raises(UserError, match=r"part2.csv: is empty"):
        prepare_kuairand(source.folder, tmp_path / "sets" / "out")
    assert files_under(tmp_path / "sets") == set()
