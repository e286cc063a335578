"""The data and the tasks: what is read of a prepared folder."""

from datetime import date

from pydantic import Field, field_validator

from stem_torchrec.config.days import Days, parse_days
from stem_torchrec.config.section import Section
from stem_torchrec.storage.place import PlaceField


class DataConfig(Section):
    path: PlaceField = Field(
        description="prepared data folder (schema.json, train/, valid/, test/), or its URL"
    )
    features: tuple[str, ...] | None = Field(
        None, description="features to use, by name; all of the schema if null"
    )
    shuffle: bool = Field(True, description="seeded shuffle of row groups and rows each epoch")
    shuffle_row_groups: int = Field(
        4, ge=1, le=1_000_000, description="row groups whose rows are shuffled together"
    )
    days: str | None = Field(
        None,
        description="train on these days only, FIRST:LAST (both included) or one day, where files "
        "or folders of the train split are named by day; valid and test stay whole",
    )
    negative_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training rows without any positive label that is kept, each "
        "with weight 1 / this, so that losses and probabilities need no correction",
    )
    unseen_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each id feature's values that training takes for unseen ones (id 0), "
        "anew in each pass, so that the model learns what to say of values without an id",
    )
    verify_checksums: bool = Field(
        True, description="refuse damaged pages of files that have checksums, as prepared ones have"
    )
    prefetch_batches: int = Field(
        2, ge=1, le=100_000, description="batches prepared in the background"
    )
    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="threads per rank that read, check and shuffle rows; 0 is 1. The batches are "
        "the same for any number",
    )

    @field_validator("days", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        # YAML reads one day as a date, or as a number.
        return str(value) if isinstance(value, date | int) else value

    @field_validator("days")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            parse_days(value)
        return value

    def days_of(self, split: str) -> Days | None:
        """The days to read of a split; None for all."""
        return parse_days(self.days) if self.days is not None and split == "train" else None


class TasksConfig(Section):
    names: tuple[str, ...] | None = Field(
        None, description="tasks to train, in order; all of the schema if null"
    )
