"""The owners' files of the public sets, made up here in their formats and under their names."""

import random
from collections.abc import Sequence
from pathlib import Path

from stem_torchrec.prepare.tables.public_sets import QK_VIDEO_COLUMNS
from tests.support.kuairand_release import Source


def write_raw(folder: Path, num_rows: int = 400) -> Path:
    """``final_track1_train.txt``, ``QK-video.csv`` and ``KuaiRand-1K``; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    tiktok = [_tiktok(rng) for _ in range(num_rows)]
    _write(folder / "final_track1_train.txt", tiktok, "\t")
    qk_video = [[row[column] for column in QK_VIDEO_COLUMNS] for row in _qk_video(rng, num_rows)]
    _write(folder / "QK-video.csv", [QK_VIDEO_COLUMNS, *qk_video], ",")
    Source(folder / "KuaiRand-1K").write_1k()
    return folder


def _tiktok(rng: random.Random) -> list[int]:
    """uid, user_city, item_id, author_id, item_city, channel, finish, like, music_id, device_id,
    create_time, video_duration."""
    user, item = rng.randint(1, 20), rng.randint(1, 30)
    labels = [int(rng.random() < 0.4), int(rng.random() < 0.2)]
    places = [user, user % 5, item, item % 7, item % 3, rng.randint(0, 3)]
    return [*places, *labels, item % 9, user, 53085738314 + item, rng.randint(5, 15)]


def _qk_video(rng: random.Random, num_rows: int) -> list[dict[str, int]]:
    return [
        dict.fromkeys(QK_VIDEO_COLUMNS, 0)
        | {f"hist_{k}": rng.randint(1, 30) for k in range(1, 11)}
        | {"user_id": rng.randint(1, 20), "item_id": rng.randint(1, 30), "age": rng.randint(0, 4)}
        | {"video_category": rng.randint(0, 1), "gender": rng.randint(0, 2)}
        | {"click": int(rng.random() < 0.4), "like": int(rng.random() < 0.2)}
        for _ in range(num_rows)
    ]


def _write(path: Path, rows: Sequence[Sequence[object]], delimiter: str) -> None:
    path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows))
