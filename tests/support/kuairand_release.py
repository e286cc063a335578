"""A KuaiRand release written here, in the layout and with the columns of the published ones."""

import csv
import random
from pathlib import Path
from typing import Any

LOG_COLUMNS = [
    *("user_id", "video_id", "date", "hourmin", "time_ms"),
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"),
    *("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"),
    *("is_profile_enter", "is_rand", "tab"),
]
USER_COLUMNS = [
    *("user_id", "user_active_degree"),
    *("is_lowactive_period", "is_live_streamer", "is_video_author"),
    *("follow_user_num", "follow_user_num_range", "fans_user_num", "fans_user_num_range"),
    *("friend_user_num", "friend_user_num_range", "register_days", "register_days_range"),
    *(f"onehot_feat{k}" for k in range(18)),
]
VIDEO_COLUMNS = [
    *("video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status"),
    *("video_duration", "server_width", "server_height", "music_id", "music_type", "tag"),
]

Row = dict[str, Any]


def write_csv(path: Path, columns: list[str], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _log_row(rng: random.Random, day: int, time_ms: int) -> Row:
    row: Row = dict.fromkeys(LOG_COLUMNS, 0)
    row |= {
        # Few users and videos are frequent; video 900 and up have no features.
        "user_id": rng.choice([1, 2, 3, rng.randint(4, 40)]),
        "video_id": rng.choice([10, 11, 12, 900, rng.randint(13, 30)]),
        "date": day,
        "hourmin": rng.randint(0, 23) * 100,
        "time_ms": time_ms,
        "is_click": rng.randint(0, 1),
        "is_like": rng.choice([0, 0, 0, 1]),
        "long_view": rng.choice([0, 1, ""]),
        "play_time_ms": rng.randint(0, 10**5),
        "duration_ms": rng.choice([0, rng.randint(1, 10**6)]),
        "comment_stay_time": rng.choice([0, 0, 777]),
        "tab": rng.choice([1] * 40 + [2] * 9 + [9]),
    }
    return row


def _user_row(rng: random.Random, user_id: int) -> Row:
    row: Row = {column: rng.randint(0, 2) for column in USER_COLUMNS}
    degree = rng.choice(["full_active", "UNKNOWN"])
    return row | {"user_id": user_id, "user_active_degree": degree, "fans_user_num": 5 * user_id}


def _video_row(rng: random.Random, video_id: int) -> Row:
    return {column: rng.randint(0, 2) for column in VIDEO_COLUMNS} | {
        "video_id": video_id,
        "author_id": video_id % 4,
        "upload_dt": f"2022-04-{rng.randint(1, 9):02d}",
        "server_width": 720,
        "server_height": rng.choice([1280, 0, 405]),
        "tag": rng.choice(["39", "39,12", "12,39,7", "", "5"]),
    }


class Source:
    """A release in its published layout; ``write`` puts what the lists hold on disk."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(0)
        self.folder = folder
        self.log_columns = list(LOG_COLUMNS)
        self.user_columns = list(USER_COLUMNS)
        days = range(20220408, 20220418)
        times = rng.sample(range(10**9), 600)
        self.logs = [_log_row(rng, day, times.pop()) for day in days for _ in range(50)]
        self.random_logs = [_log_row(rng, 20220417, times.pop()) for _ in range(20)]
        self.users = [_user_row(rng, user_id) for user_id in range(1, 40)]  # 40 has no features
        self.videos = [_video_row(rng, video_id) for video_id in range(10, 31)]

    def write_1k(self) -> Path:
        """The same rows with the files of the small release."""
        data = self.folder / "data"
        write_csv(data / "log_standard_4_08_to_4_21_1k.csv", self.log_columns, self.logs[:250])
        write_csv(data / "log_standard_4_22_to_5_08_1k.csv", self.log_columns, self.logs[250:])
        write_csv(data / "log_random_4_22_to_5_08_1k.csv", self.log_columns, self.random_logs)
        write_csv(data / "user_features_1k.csv", self.user_columns, self.users)
        write_csv(data / "video_features_basic_1k.csv", VIDEO_COLUMNS, self.videos)
        write_csv(data / "video_features_statistic_1k.csv", ["video_id", "show_cnt"], [])
        (self.folder / "load_data_1k.py").touch()
        return self.folder

    def write(self) -> Path:
        """The files of the large release, logs and videos in parts."""
        data = self.folder / "data"
        middle = len(self.logs) // 2
        for name, rows in (
            ("log_standard_4_08_to_4_21_27k_part1.csv", self.logs[:100]),
            ("log_standard_4_08_to_4_21_27k_part2.csv", self.logs[100:middle]),
            ("log_standard_4_22_to_5_08_27k_part1.csv", self.logs[middle:-50]),
            ("log_standard_4_22_to_5_08_27k_part2.csv", self.logs[-50:]),
            ("log_random_4_22_to_5_08_27k.csv", self.random_logs),
        ):
            write_csv(data / name, self.log_columns, rows)
        write_csv(data / "user_features_27k.csv", self.user_columns, self.users)
        write_csv(data / "video_features_basic_27k_part1.csv", VIDEO_COLUMNS, self.videos[:10])
        write_csv(data / "video_features_basic_27k_part2.csv", VIDEO_COLUMNS, self.videos[9:])
        for part in (1, 2, 3):
            name = f"video_features_statistic_27k_part{part}.csv"
            write_csv(data / name, ["video_id", "show_cnt"], [])
        (self.folder / "load_data_27k.py").touch()
        return self.folder
