"""Public data sets of one file whose columns are known, as the STEM paper has them.

``tiktok`` is the short-video set of the ICME 2019 challenge: the eight fields that STEM's reference
code reads, or ``user_city`` for ``video_duration``; two tasks. A tenth of the rows is test and a
tenth of the rest valid (223.4, 24.8 and 27.6 million in the paper).

``qk_video`` is QK-Video of Tenrec (Yuan et al., NeurIPS 2022). The file gives 15 input fields, one
short of the 16 that the STEM paper counts: of its other columns ``watching_times`` is an outcome of
the row, as ``follow`` and ``share`` are, and no outcome becomes a feature. The ten items watched
last share the table of ``item_id``. Rows are split 8:1:1, the plain shares next to the paper's
95.9, 12.0 and 12.5 million.
"""

from collections.abc import Mapping, Sequence

from stem_torchrec.prepare.engine.options import TikTokFields
from stem_torchrec.prepare.tables.describe import (
    DescribedFeature,
    Description,
    RawFormat,
)
from stem_torchrec.prepare.tables.splits import RandomSplit

TIKTOK_COLUMNS = (
    *("uid", "user_city", "item_id", "author_id", "item_city", "channel", "finish", "like"),
    *("music_id", "device_id", "create_time", "video_duration"),
)
HISTORY = tuple(f"hist_{k}" for k in range(1, 11))
QK_VIDEO_COLUMNS = (
    *("user_id", "item_id", "click", "follow", "like", "share", "video_category"),
    *("watching_times", "gender", "age", *HISTORY),
)


def describe_tiktok(
    *, seed: int = 0, min_count: int = 10, fields: TikTokFields = "paper"
) -> Description:
    """``final_track1_train.txt``: 12 columns, TAB, no header."""
    raw_format = RawFormat(
        delimiter="\t",
        header=False,
        columns=TIKTOK_COLUMNS,
        quote=None,
        types=dict.fromkeys(TIKTOK_COLUMNS, "BIGINT"),
    )
    features = [
        DescribedFeature(name="user_id", column="uid", side="user"),
        DescribedFeature(name="device_id", side="user"),
        DescribedFeature(name="item_id", side="item"),
        DescribedFeature(name="author_id", side="item"),
        DescribedFeature(name="item_city", side="item"),
        DescribedFeature(name="music_id", side="item"),
        DescribedFeature(name="channel", side="context"),
        DescribedFeature(name="video_duration", side="item")
        if fields == "paper"
        else DescribedFeature(name="user_city", side="user"),
    ]
    labels = {"finish": "finish", "like": "like"}
    split = RandomSplit(by="random", shares=(0.81, 0.09, 0.1), seed=seed)
    return _describe(raw_format, features, labels, "uid", split, min_count)


def describe_qk_video(*, seed: int = 0, min_count: int = 10) -> Description:
    """``QK-video.csv``: the header names at least these columns, in any order."""
    types = dict.fromkeys(QK_VIDEO_COLUMNS, "BIGINT")
    raw_format = RawFormat(columns=QK_VIDEO_COLUMNS, types=types)
    features = [
        DescribedFeature(name="user_id", side="user"),
        DescribedFeature(name="gender", side="user"),
        DescribedFeature(name="age", side="user"),
        DescribedFeature(name="item_id", side="item"),
        DescribedFeature(name="video_category", side="item"),
        *(DescribedFeature(name=name, side="user", table="item_id") for name in HISTORY),
    ]
    labels = {"click": "click", "like": "like"}
    split = RandomSplit(by="random", seed=seed)
    return _describe(raw_format, features, labels, "user_id", split, min_count)


def _describe(
    raw_format: RawFormat,
    features: Sequence[DescribedFeature],
    labels: Mapping[str, str],
    group: str,
    split: RandomSplit,
    min_count: int,
) -> Description:
    return Description(
        format=raw_format,
        features=tuple(features),
        labels=dict(labels),
        group=group,
        user="user_id",
        item="item_id",
        split=split,
        min_count=min_count,
    )
