"""The short-video set of the ICME 2019 challenge ("TikTok" in the STEM paper), ``final_track1``.

Eight fields and two tasks as in the paper; ``create_time`` and ``video_duration`` are no fields of
it. Rows are split 8:1:1 by chance.
"""

from stem_torchrec.prepare.describe import (
    DescribedFeature,
    Description,
    RandomSplit,
    RawFormat,
)

COLUMNS = (
    *("uid", "user_city", "item_id", "author_id", "item_city", "channel", "finish", "like"),
    *("music_id", "device_id", "create_time", "video_duration"),
)


def describe_tiktok(*, seed: int = 0, min_count: int = 10) -> Description:
    """``final_track1_train.txt``: 12 columns, TAB, no header."""
    return Description(
        format=RawFormat(
            delimiter="\t",
            header=False,
            columns=COLUMNS,
            quote=None,
            types=dict.fromkeys(COLUMNS, "BIGINT"),
        ),
        features=(
            DescribedFeature(name="user_id", column="uid", side="user"),
            DescribedFeature(name="user_city", side="user"),
            DescribedFeature(name="device_id", side="user"),
            DescribedFeature(name="item_id", side="item"),
            DescribedFeature(name="author_id", side="item"),
            DescribedFeature(name="item_city", side="item"),
            DescribedFeature(name="music_id", side="item"),
            DescribedFeature(name="channel", side="context"),
        ),
        labels={"finish": "finish", "like": "like"},
        group="uid",
        user="user_id",
        item="item_id",
        split=RandomSplit(by="random", seed=seed),
        min_count=min_count,
    )
