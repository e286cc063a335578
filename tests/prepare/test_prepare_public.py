"""TikTok and QK-Video: golden files in their formats, and training on the former."""

import json
from pathlib import Path

import pytest

from stem_torchrec.cli import main
from stem_torchrec.data.schema import load_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.options import TikTokFields
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from stem_torchrec.prepare.tables.public_sets import (
    QK_VIDEO_COLUMNS,
    describe_qk_video,
    describe_tiktok,
)
from stem_torchrec.prepare.tables.splits import RandomSplit
from tests.prepare.raw_tables import all_rows, vocabulary, without, write_text

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "tiktok" / "byterec_sample.txt"
# uid, user_city, item_id, author_id, item_city, channel, finish, like, music_id, device_id, time, s
TIKTOK = [
    (7, 1, 50, 60, -1, 0, 0, 1, 90, 8, 53085738314, 9),
    (7, 1, 51, 60, 2, 0, 1, 0, -1, 8, 53085738315, 8),
    (9, 1, 50, 61, 2, 3, 0, 0, 90, 5, 53085738316, 7),
]
COUNTED = {"user_id": 7, "device_id": 8, "item_id": 50, "author_id": 60}
COUNTED |= {"item_city": 2, "music_id": 90, "channel": 0}
EIGHTH = {"paper": ("video_duration", 11), "user_city": ("user_city", 1)}


@pytest.mark.parametrize("fields", ["paper", "user_city"])
def test_tiktok_rows(tmp_path: Path, fields: TikTokFields) -> None:
    source = write_text(tmp_path / "final_track1_train.txt", TIKTOK * 20, "\t")
    described = describe_tiktok(min_count=1, fields=fields)
    stats = prepare_files([source], described, tmp_path / "out")
    found = [row for rows in all_rows(tmp_path / "out").values() for row in rows]
    assert len(found) == stats["raw_rows"] == 60
    raw_names = {"user_id": 0, "device_id": 9, "item_id": 2, "author_id": 3}
    raw_names |= {"item_city": 4, "music_id": 8, "channel": 5}
    raw_names |= dict([EIGHTH[fields]])
    ids = {name: vocabulary(tmp_path / "out", name) for name in raw_names}
    expected = [
        {name: ids[name][row[k]] for name, k in raw_names.items()}
        | {"finish": row[6], "like": row[7], "group": row[0]}
        for row in TIKTOK * 20
    ]
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, expected))
    # Twice out of three rows in the raw data: the most frequent value is id 1.
    assert {name: ids[name][value] for name, value in COUNTED.items()} == dict.fromkeys(COUNTED, 1)
    schema = load_schema(tmp_path / "out")
    assert (len(schema.features), schema.task_names) == (8, ("finish", "like"))
    assert (stats["users"], stats["items"]) == (2, 2)
    assert stats["positive_ratio"] == {"finish": 1 / 3, "like": 1 / 3}


def test_tiktok_has_a_tenth_of_the_rows_for_test_and_a_tenth_of_the_rest_for_valid() -> None:
    split = describe_tiktok().split
    assert isinstance(split, RandomSplit)
    assert split.shares == (0.81, 0.09, 0.1)


def test_qk_video_shares_the_table_of_items_and_takes_no_outcome(tmp_path: Path) -> None:
    rows = [
        dict.fromkeys(QK_VIDEO_COLUMNS, 0)
        | {"user_id": k % 3, "item_id": 100 + k % 2, "click": k % 2, "watching_times": k}
        | {f"hist_{h}": 100 + h for h in range(1, 11)}
        for k in range(30)
    ]
    for name in ("a", "b"):
        columns = list(QK_VIDEO_COLUMNS) if name == "a" else list(reversed(QK_VIDEO_COLUMNS))
        lines = [columns, *([row[column] for column in columns] for row in rows)]
        source = write_text(tmp_path / f"{name}.csv", lines)
        stats = prepare_files([source], describe_qk_video(min_count=5), tmp_path / name)
        for row in rows:  # what comes after the impression must not show in a feature
            row |= {"watching_times": 5, "follow": 1, "share": 1, "click": 1, "like": 1}
    schema = load_schema(tmp_path / "a")
    assert len(schema.features) == stats["fields"] == 15
    assert schema.task_names == ("click", "like")
    history = [f for f in schema.features if f.name.startswith("hist_")]
    assert {(f.table, f.num_embeddings) for f in history} == {("item_id", 12)}
    items = vocabulary(tmp_path / "a", "item_id")
    assert set(items) == {100, *range(101, 111)}
    inputs = [
        {s: [without(r, "click", "like") for r in rows] for s, rows in all_rows(out).items()}
        for out in (tmp_path / "a", tmp_path / "b")
    ]
    assert inputs[0] == inputs[1]
    assert inputs[0]["train"][0]["hist_9"] == items[109]


def test_header_in_a_tiktok_file_is_no_row(tmp_path: Path) -> None:
    source = write_text(tmp_path / "t.txt", [["uid", *["x"] * 11], *TIKTOK], "\t")
    with pytest.raises(UserError, match=r"t.txt, row 1: column 'uid': uid is no BIGINT$"):
        prepare_files([source], describe_tiktok(), tmp_path / "out")


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"no TikTok sample {SAMPLE}")
@pytest.mark.filterwarnings("ignore:Please use DTensor instead:FutureWarning")
def test_tiktok_config_trains_on_the_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiktok"
    command = ["prepare", "tiktok", "--source", str(SAMPLE), "--out", str(out)]
    assert main([*command, "--min_count", "2"]) == 0
    shown = capsys.readouterr()
    assert "positive" in shown.out
    assert "finish" in shown.out
    assert "read 1 files" in shown.err
    assert main([*command, "--min-count", "2"]) == 2
    assert "is not empty" in capsys.readouterr().err
    train = ["train", "--config", str(ROOT / "configs" / "tiktok.yaml"), "--nproc", "1"]
    train += ["--data.path", str(out), "--run.dir", str(tmp_path / "run")]
    train += ["--train.batch_size", "32", "--train.max_steps", "3", "--distributed.device", "cpu"]
    train += ["--model.expert_widths", "[8]", "--embedding.optimizer", "rowwise_adagrad"]
    assert main(train) == 0
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(record["logloss"]) == {"finish", "like"}
