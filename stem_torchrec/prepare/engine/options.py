"""What the adapters of ``prepare`` may be told; apart from them, for a help needs no engine."""

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

ROW_GROUP_ROWS = 131_072

_GIB = 2**30
# What DuckDB takes beside its own account of memory: the interpreter, threads, allocator.
_UNACCOUNTED_GIB = 0.4


class Resources(BaseModel):
    """What preparing may take of the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_gib: float | None = Field(
        None, gt=0.5, description="memory of the process, GiB; null: half of the machine's"
    )
    threads: int | None = Field(None, ge=1, description="threads; null: one per core")

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def limit_bytes(self) -> int:
        """What DuckDB may count as its own."""
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
        memory_gib = total / 2 if self.memory_gib is None else self.memory_gib
        return int(max(memory_gib - _UNACCOUNTED_GIB, memory_gib / 4) * _GIB)


class PrepareOptions(Resources):
    """How raw files are prepared, whatever they hold."""

    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="at a raw row that does not fit: stop, or count it and go on"
    )
    shuffle_seed: int = Field(0, ge=0, description="seed of the order of the train files")
    row_group_rows: int = Field(ROW_GROUP_ROWS, ge=1, description="rows per row group")


class PublicSetOptions(PrepareOptions):
    """How a public set of known columns is prepared."""

    seed: int = Field(0, ge=0, description="seed of the split")
    min_count: int = Field(10, ge=1, description="rows of train a value needs for an id of its own")


TikTokFields = Literal["paper", "user_city"]


class TikTokOptions(PublicSetOptions):
    """How the TikTok set is prepared."""

    fields: TikTokFields = Field(
        "paper",
        description="features: the eight of STEM's reference code, or those with user_city in "
        "place of video_duration",
    )


KuaiRandSplit = Literal["release", "last_2_days", "last_5_days"]


class KuaiRandConfig(Resources):
    """How the log is split and encoded."""

    tasks: tuple[str, ...] | None = Field(
        default=None, description="tasks; null: all that the log has columns for"
    )
    split: KuaiRandSplit = Field(
        default="release",
        description="last_2_days: one day each is valid and test, last_5_days: 2 and 3; release: "
        "the 2 of KuaiRand-1K, as the STEM paper's counts tell, the 5 of other files",
    )
    train_until: int | None = Field(
        default=None, description="last day of train, YYYYMMDD; null: as split says"
    )
    valid_until: int | None = Field(default=None, description="last day of valid, YYYYMMDD")
    min_count: int = Field(
        default=10, ge=1, description="rows of train a value needs for an id of its own"
    )
    include_random: bool = Field(
        default=False, description="read the log of randomly exposed videos too"
    )
    fields: Literal["all", "core"] = Field(
        default="all", description="features: all 40, or the 32 of users and videos alone"
    )
    row_group_rows: int = Field(default=ROW_GROUP_ROWS, ge=1, description="rows per row group")
