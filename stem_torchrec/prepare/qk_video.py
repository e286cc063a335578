"""QK-Video of Tenrec (Yuan et al., NeurIPS 2022), ``QK-video.csv``.

The file gives 15 input fields, one short of the 16 that the STEM paper counts: of its other columns
``watching_times`` is an outcome of the row, as ``follow`` and ``share`` are, and no outcome becomes
a feature. The ten items watched last share the table of ``item_id``.
"""

from stem_torchrec.prepare.describe import (
    DescribedFeature,
    Description,
    RandomSplit,
    RawFormat,
)

HISTORY = tuple(f"hist_{k}" for k in range(1, 11))
COLUMNS = (
    *("user_id", "item_id", "click", "follow", "like", "share", "video_category"),
    *("watching_times", "gender", "age", *HISTORY),
)


def describe_qk_video(*, seed: int = 0, min_count: int = 10) -> Description:
    """``QK-video.csv``: the header names at least these columns, in any order."""
    return Description(
        format=RawFormat(columns=COLUMNS, types=dict.fromkeys(COLUMNS, "BIGINT")),
        features=(
            DescribedFeature(name="user_id", side="user"),
            DescribedFeature(name="gender", side="user"),
            DescribedFeature(name="age", side="user"),
            DescribedFeature(name="item_id", side="item"),
            DescribedFeature(name="video_category", side="item"),
            *(DescribedFeature(name=name, side="user", table="item_id") for name in HISTORY),
        ),
        labels={"click": "click", "like": "like"},
        group="user_id",
        user="user_id",
        item="item_id",
        split=RandomSplit(by="random", seed=seed),
        min_count=min_count,
    )
