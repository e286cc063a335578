"""The KuaiRand slice by days: its log joined with users, and how it is prepared day after day."""

import csv
from collections.abc import Sequence
from pathlib import Path

from stem_torchrec.cli import main

SLICE = Path(__file__).parents[2].parent / "shared" / "data" / "kuairand"
DAYS = tuple(f"2022-04-{day:02}" for day in range(8, 15))
"""A week of train; of the two days after it one is valid and one test."""

DESCRIPTION = """
features:
  - {name: user_id, side: user}
  - {name: user_active_degree, side: user}
  - {name: onehot_feat3, side: user}
  - {name: onehot_feat8, side: user}
  - {name: video_id, side: item}
  - {name: hour, expression: "hourmin // 100", encoding: identity, num_embeddings: 24}
labels:
  click: is_click
  long_view: long_view
  comment_stay: comment_stay_time > 0
  profile_enter: is_profile_enter
group: user_id
split: {by: day, column: date, valid: [2022-04-15], test: [2022-04-16]}
min_count: 10
"""


def write_raw_days(folder: Path) -> Path:
    """``folder/log/date=YYYY-MM-DD/part-0.csv`` for every day of the slice, and ``days.yaml``."""
    (folder / "days.yaml").write_text(DESCRIPTION)
    with (SLICE / "user_features_slice.csv").open() as lines:
        users = {row["user_id"]: row for row in csv.DictReader(lines)}
    with (SLICE / "log_standard_4_08_to_4_21_slice.csv").open() as lines:
        rows = [row | users.get(row["user_id"], {}) for row in csv.DictReader(lines)]
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "date"))
    by_day: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_day.setdefault(row["date"], []).append(row)
    for date, found in by_day.items():
        file = folder / "log" / f"date={date[:4]}-{date[4:6]}-{date[6:]}" / "part-0.csv"
        file.parent.mkdir(parents=True)
        with file.open("w", newline="") as written:
            writer = csv.DictWriter(written, columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(found)
    return folder / "log"


def prepare_day_after_day(log: Path, out: Path, days: Sequence[str]) -> None:
    """The days one by one, as a person would."""
    described = ["--describe", str(log.with_name("days.yaml"))]
    for number, day in enumerate(days):
        source = ["prepare", "csv", "--source", str(log / f"date={day}")]
        target = ["--extend", str(out)] if number else ["--out", str(out), *described]
        assert main([*source, *target]) == 0
