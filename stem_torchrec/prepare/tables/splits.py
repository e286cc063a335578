"""How a description divides rows into train, valid and test."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stem_torchrec.config.days import Days, parse_days
from stem_torchrec.config.frozen import Frozen
from stem_torchrec.config.section import MAX_SEED
from stem_torchrec.data.schema import SPLITS
from stem_torchrec.prepare.engine.canonical_values import without_zero_fraction

Scalar = bool | int | float | date | datetime | str
Moment = int | date | datetime | str
Share = Annotated[float, Field(ge=0, le=1)]


class Described(Frozen):
    """Base of all parts of a description."""


class DescribedValue(Described):
    """One raw column, or an expression over several."""

    column: str | None = Field(None, description="raw column")
    expression: str | None = Field(None, description="SQL expression over raw columns")

    @model_validator(mode="after")
    def _one_source(self) -> "DescribedValue":
        if self.column is not None and self.expression is not None:
            raise ValueError("column, expression: give one of them")
        return self


class RandomSplit(Described):
    """Every row falls into a split by chance, the same with the same seed."""

    by: Literal["random"]
    shares: tuple[Share, Share, Share] = Field(
        (0.8, 0.1, 0.1), description="of train, valid and test; their sum is 1"
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="seed of the split")

    @model_validator(mode="after")
    def _shares_fill_the_whole(self) -> "RandomSplit":
        _check_shares(self.shares)
        return self


class TimeSplit(DescribedValue):
    """Rows by time: integers, dates or timestamps. A bound is the first moment of its split."""

    by: Literal["time"]
    valid_from: Moment | None = Field(None, description="first moment of valid")
    test_from: Moment | None = Field(None, description="first moment of test")
    shares: tuple[Share, Share, Share] | None = Field(
        None, description="instead of bounds: shares of train, valid and test"
    )

    @model_validator(mode="after")
    def _bounds_or_shares(self) -> "TimeSplit":
        _require_source(self)
        bounds = (self.valid_from is not None) + (self.test_from is not None)
        if (self.shares is None) != (bounds == 2) or bounds == 1:
            raise ValueError("give valid_from and test_from, or shares")
        if self.shares is not None:
            _check_shares(self.shares)
        return self


class ColumnSplit(DescribedValue):
    """The raw data says of each row to which split it belongs."""

    by: Literal["column"]
    train: tuple[Scalar, ...] = Field(min_length=1, description="values of train")
    valid: tuple[Scalar, ...] = Field((), description="values of valid")
    test: tuple[Scalar, ...] = Field((), description="values of test")

    @field_validator(*SPLITS, mode="before")
    @classmethod
    def _are_lists(cls, values: object) -> object:
        _require_list("values", values)
        return values

    @model_validator(mode="after")
    def _values_are_apart(self) -> "ColumnSplit":
        _require_source(self)
        values = [text for split in SPLITS for text in self.texts(split)]
        refuse_doubled("values", values)
        return self

    def texts(self, split: str) -> list[str]:
        """The values of a split as raw data writes them, ``1.0`` as ``1``."""
        return [without_zero_fraction(_written(value)) for value in getattr(self, split)]


class FileSplit(Described):
    """A row belongs to the split of its file.

    A pattern without a slash is one of names (``train_*.csv``), one with slashes of the ends of
    paths (``date=2022-04-0?/*``).
    """

    by: Literal["file"]
    train: tuple[str, ...] = Field(min_length=1, description="patterns of the files of train")
    valid: tuple[str, ...] = Field((), description="patterns of the files of valid")
    test: tuple[str, ...] = Field((), description="patterns of the files of test")

    @field_validator(*SPLITS, mode="before")
    @classmethod
    def _are_lists(cls, patterns: object) -> object:
        _require_list("patterns", patterns)
        return patterns


class DaySplit(DescribedValue):
    """Rows by day, each day in a folder of its own: what later days are added to.

    Without a column or an expression all rows are of the day that the command names.
    """

    by: Literal["day"]
    valid: tuple[str, ...] = Field((), description="days of valid: 2022-04-08, or FIRST:LAST")
    test: tuple[str, ...] = Field((), description="days of test; all others are train")

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _are_texts(cls, days: Any) -> object:
        _require_list("days", days)
        return [str(day) if isinstance(day, int | date) else day for day in days]

    @model_validator(mode="after")
    def _days_are_apart(self) -> "DaySplit":
        for valid in self.ranges("valid"):
            for test in self.ranges("test"):
                if valid.first <= test.last and test.first <= valid.last:
                    day = max(valid.first, test.first)
                    raise ValueError(f"valid, test: {day} is in both")
        return self

    @property
    def has_source(self) -> bool:
        """The rows themselves say of which day they are."""
        return self.column is not None or self.expression is not None

    def ranges(self, split: str) -> list[Days]:
        """The days of valid or test."""
        found = []
        for text in getattr(self, split):
            try:
                found.append(parse_days(text))
            except ValueError as error:
                raise ValueError(f"{split}: {text!r}: {error}") from None
        return found


def _written(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _require_source(value: DescribedValue) -> None:
    if value.column is None and value.expression is None:
        raise ValueError("column or expression: needed")


def _check_shares(shares: Sequence[float]) -> None:
    if abs(sum(shares) - 1) > 1e-9 or shares[0] == 0:
        raise ValueError("shares: their sum is 1 and the first is above 0")


def _require_list(what: str, values: object) -> None:
    if not isinstance(values, list | tuple):
        raise ValueError(f"a list of {what}, found {values!r}; write [{values}]")


def refuse_doubled(what: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name occurs twice."""
    if doubled := next((name for name in names if list(names).count(name) > 1), None):
        raise ValueError(f"{what}: {doubled!r} occurs twice")
