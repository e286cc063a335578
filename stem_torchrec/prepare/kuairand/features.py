"""Tasks and features of the KuaiRand log, and the SQL that makes them from its raw columns.

Outcomes are tasks and never features: every ``is_*`` of the log, ``long_view`` and the play and
stay times. ``visible_status`` (the video's state on the day of the release) and the month's video
statistics lie after the rows they would describe, so they are left out too.
"""

from dataclasses import dataclass
from typing import Literal

from stem_torchrec.data.schema import Feature

# Task -> (column of the log, its positive values: "one" of 0/1, or "above_zero" of a time).
TASKS: dict[str, tuple[str, Literal["one", "above_zero"]]] = {
    "click": ("is_click", "one"),
    "like": ("is_like", "one"),
    "follow": ("is_follow", "one"),
    "comment": ("is_comment", "one"),
    "forward": ("is_forward", "one"),
    "hate": ("is_hate", "one"),
    "long_view": ("long_view", "one"),
    "profile_enter": ("is_profile_enter", "one"),
    "comment_stay": ("comment_stay_time", "above_zero"),
}

LOG_COLUMNS = ("user_id", "video_id", "date", "hourmin", "time_ms", "duration_ms")
SCENARIO_COLUMN = "tab"  # only in the full release

CORE_VIDEO_FIELDS = ("video_id", "author_id", "video_type", "upload_type", "tag")

Source = Literal["log", "user", "video", "joined"]


@dataclass(frozen=True)
class RawFeature:
    """A feature before encoding.

    Attributes:
        source: table of ``sql``; ``joined`` sees a log row with its video's columns.
        sql: raw value of a vocabulary feature; bucket number, 0 if unknown, of the others.
        columns: raw columns of the source's file that ``sql`` needs.
        flat_sql: the same over the raw columns of a row with its user's and its video's, where
            ``sql`` is not.
        num_buckets: rows of the table; None if they come from a vocabulary.
    """

    name: str
    side: Literal["user", "item", "context"]
    source: Source
    sql: str
    columns: tuple[str, ...]
    num_buckets: int | None = None
    kind: Literal["id", "bag"] = "id"
    flat_sql: str | None = None

    def encoded(self, num_embeddings: int) -> Feature:
        return Feature(
            name=self.name,
            kind=self.kind,
            side=self.side,
            num_embeddings=num_embeddings,
            pooling="mean" if self.kind == "bag" else "sum",
            encoding="vocabulary" if self.num_buckets is None else "bucket",
        )


def features_of(log_columns: list[str], *, fields: Literal["all", "core"]) -> list[RawFeature]:
    """The features; those of optional log columns where ``log_columns`` has them.

    Args:
        fields: ``all`` 40 of a full release, or the 32 of ``core``: users, and of videos the ids
            and categories in ``CORE_VIDEO_FIELDS``, without context. The paper counts 32 fields,
            too, and does not name them.
    """
    videos = _video_features()
    if fields == "core":
        return [*_user_features(), *(f for f in videos if f.name in CORE_VIDEO_FIELDS)]
    features = [*_user_features(), *videos, *_context_features()]
    if SCENARIO_COLUMN in log_columns:
        features.append(_category(SCENARIO_COLUMN, "context", "log"))
    return features


def log_bucket(value: str, num_buckets: int, per_octave: int = 2) -> str:
    """SQL of a bucket that grows with the logarithm of ``value``; 0 if null or negative."""
    bucket = f"1 + floor({per_octave} * log2(1 + {value}))"
    return (
        f"CASE WHEN {value} IS NULL OR {value} < 0 THEN 0 "
        f"ELSE least({bucket}, {num_buckets - 1})::INTEGER END"
    )


def _category(column: str, side: Literal["user", "item", "context"], source: Source) -> RawFeature:
    return RawFeature(column, side, source, column, (column,))


def _count(column: str, num_buckets: int) -> RawFeature:
    sql = log_bucket(f"TRY_CAST({column} AS DOUBLE)", num_buckets)
    return RawFeature(column, "user", "user", sql, (column,), num_buckets)


def _user_features() -> list[RawFeature]:
    categories = (
        "user_active_degree",
        "is_lowactive_period",
        "is_live_streamer",
        "is_video_author",
        *(f"onehot_feat{k}" for k in range(18)),
    )
    return [
        _category("user_id", "user", "log"),
        *(_category(column, "user", "user") for column in categories),
        _count("follow_user_num", 32),
        _count("fans_user_num", 48),
        _count("friend_user_num", 32),
        _count("register_days", 32),
    ]


def _video_features() -> list[RawFeature]:
    categories = ("author_id", "video_type", "upload_type", "music_id", "music_type")
    width, height = (f"TRY_CAST(server_{side} AS DOUBLE)" for side in ("width", "height"))
    aspect = (
        f"CASE WHEN {width} > 0 AND {height} > 0 "
        f"THEN (9 + greatest(-8, least(8, round(4 * log2({width} / {height})))))::INTEGER "
        "ELSE 0 END"
    )
    duration = log_bucket("nullif(TRY_CAST(duration_ms AS DOUBLE), 0)", 64)
    return [
        _category("video_id", "item", "log"),
        *(_category(column, "item", "video") for column in categories),
        RawFeature("tag", "item", "video", "tag", ("tag",), kind="bag"),
        RawFeature("aspect", "item", "video", aspect, ("server_width", "server_height"), 18),
        RawFeature("duration", "item", "log", duration, ("duration_ms",), 64),
    ]


def _context_features() -> list[RawFeature]:
    hour = "TRY_CAST(hourmin AS INTEGER) // 100"
    hour = f"CASE WHEN {hour} BETWEEN 0 AND 23 THEN 1 + {hour} ELSE 0 END"
    day = "try_strptime(date, '%Y%m%d')"

    def age(upload_day: str, date: str) -> str:
        return log_bucket(
            f"date_diff('day', {upload_day}, try_strptime({date}, '%Y%m%d')::DATE)", 32
        )

    return [
        RawFeature("hour", "context", "log", hour, ("hourmin",), 25),
        RawFeature("weekday", "context", "log", f"coalesce(isodow({day}), 0)", ("date",), 8),
        RawFeature(
            "upload_age",
            "context",
            "joined",
            age("upload_day", "date::VARCHAR"),
            ("upload_dt",),
            32,
            flat_sql=age("TRY_CAST(upload_dt AS DATE)", "date"),
        ),
    ]
