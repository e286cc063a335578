"""What raw files hold and how they become features, labels and splits: the YAML of ``prepare csv``.

An *expression* is a SQL expression of DuckDB over the columns of one raw row.
"""

from typing import Literal

from pydantic import Field, model_validator

from stem_torchrec.data.schema import MAX_EMBEDDINGS
from stem_torchrec.prepare.encoder.transforms import DenseTransform
from stem_torchrec.prepare.tables.splits import (
    ColumnSplit,
    DaySplit,
    Described,
    DescribedValue,
    FileSplit,
    RandomSplit,
    TimeSplit,
    refuse_doubled,
)

GROUP_COLUMN = "group"
WEIGHT_COLUMN = "sample_weight"
MAX_COUNT = 10**15
MAX_BUCKETS = 1 << 16

# What the engine calls the number of a row; in a table that has such a column it is that column.
RESERVED_NAMES = ("rowid",)


class RawFormat(Described):
    """How the raw files are written.

    Values of ids, labels, dense features, weights and groups that are plain columns are taken as
    they are written, whatever the first rows look like. For expressions and times the types of
    delimited files are found in the first rows unless they are given; a value that is of another
    type is a bad row.
    """

    type: Literal["delimited", "parquet"] = Field("delimited", description="kind of the files")
    delimiter: str = Field(",", min_length=1, max_length=4, description="between two values")
    header: bool = Field(True, description="the first line of every file names the columns")
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the columns; needed where there is no header"
    )
    types: dict[str, str] = Field(
        {}, description="DuckDB types by column, e.g. BIGINT, DOUBLE, VARCHAR; others are found"
    )
    times: dict[str, str] = Field(
        {},
        description="how columns write times: unix (seconds, also with a fraction), unix_ms, or a "
        "layout of strptime, e.g. '%d/%m/%Y'; they are timestamps then",
    )
    decimal: Literal[".", ","] = Field(".", description="what parts a number's fraction off")
    quote: str | None = Field('"', max_length=1, description="around a value; null: no quoting")
    null_strings: tuple[str, ...] = Field(("",), description="values that mean: missing")

    @model_validator(mode="after")
    def _columns_are_known(self) -> "RawFormat":
        if self.type == "delimited" and not self.header and self.columns is None:
            raise ValueError("columns: needed, for there is no header")
        refuse_doubled("columns", [name.lower() for name in self.columns or ()])
        if both := sorted(self.times.keys() & self.types.keys()):
            raise ValueError(f"times, types: {both[0]!r} is in both; allowed: one of them")
        return self


class SideTable(Described):
    """Files with a row for each value of a key, whose columns are joined to the rows."""

    source: str | tuple[str, ...] = Field(description="files or patterns, as of --source")
    on: str | tuple[str, ...] | dict[str, str] = Field(
        description="column of the key, or several; {column: column of the table} if names differ"
    )
    format: RawFormat = Field(default_factory=RawFormat, description="how the files are written")
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="columns to take; all but the key if null"
    )
    prefix: str = Field("", description="put before the names of the columns")
    missing: Literal["refuse", "allow"] = Field(
        "refuse", description="a row whose key is not there: a bad row, or one of missing values"
    )

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def keys(self) -> dict[str, str]:
        """Columns of the rows -> columns of the table."""
        if isinstance(self.on, dict):
            return self.on
        return {name: name for name in ((self.on,) if isinstance(self.on, str) else self.on)}

    @model_validator(mode="after")
    def _has_a_key(self) -> "SideTable":
        if not self.keys:
            raise ValueError("on: needed, the column of the key")
        return self


class DescribedFeature(DescribedValue):
    """A feature; its value is the raw column of its name unless it says otherwise."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="name of the feature")
    kind: Literal["id", "bag", "dense"] = Field("id", description="see schema.json")
    side: Literal["user", "item", "context"] = Field("context", description="whom it describes")
    separator: str | None = Field(None, min_length=1, description="between the values of a bag")
    pooling: Literal["sum", "mean"] = Field("sum", description="how a bag's rows are pooled")
    encoding: Literal["vocabulary", "hash", "identity", "bucket"] = Field(
        "vocabulary", description="how values become ids"
    )
    transform: DenseTransform | None = Field(
        None, description="of a dense feature: what becomes of its numbers, fitted on train"
    )
    num_embeddings: int | None = Field(
        None,
        ge=2,
        le=MAX_EMBEDDINGS,
        description="rows of the table; for hash, identity and bucket",
    )
    table: str | None = Field(None, description="feature whose table and encoding this one shares")

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> "DescribedFeature":
        if self.separator is not None and self.kind != "bag":
            raise ValueError(f"separator: only a bag has one, kind is {self.kind!r}")
        if self.transform is not None and self.kind != "dense":
            raise ValueError(
                f"transform: {self.transform!r} is one of dense features, kind is {self.kind!r}; "
                "for ids there is encoding: bucket"
            )
        if self.encoding == "bucket":
            self._check_buckets()
        own = self.num_embeddings is not None
        if self.kind == "dense":
            if own or self.table is not None:
                raise ValueError("num_embeddings, table: a dense feature has no table")
        elif self.table is not None and (own or "encoding" in self.model_fields_set):
            raise ValueError("encoding, num_embeddings: those of the shared table hold")
        elif self.table is None and own == (self.encoding == "vocabulary"):
            verb = "counted by" if own else "needed with"
            raise ValueError(f"num_embeddings: {verb} encoding {self.encoding!r}")
        return self

    def _check_buckets(self) -> None:
        if self.kind != "id":
            raise ValueError(f"encoding: 'bucket' is one of ids, kind is {self.kind!r}")
        if not 3 <= (self.num_embeddings or 3) <= MAX_BUCKETS:
            raise ValueError(
                f"num_embeddings: {self.num_embeddings} with encoding 'bucket'; allowed: 3 to "
                f"{MAX_BUCKETS}"
            )


class Description(Described):
    """All that ``prepare csv`` needs to know about raw files."""

    format: RawFormat = Field(default_factory=RawFormat, description="how the files are written")
    tables: dict[str, SideTable] = Field(
        {}, description="tables whose columns are joined to the rows by a key, by name"
    )
    features: tuple[DescribedFeature, ...] = Field(min_length=1, description="input columns")
    labels: dict[str, str] = Field(
        min_length=1,
        description="task: expression, true or 1 if positive, null if it was not observed",
    )
    sample_weight: str | None = Field(None, description="expression: weight of the row")
    group: str | None = Field(None, description="expression: group of GAUC, e.g. the user")
    user: str | None = Field(None, description="feature whose values are the users of stats.json")
    item: str | None = Field(None, description="feature whose values are the items of stats.json")
    split: RandomSplit | TimeSplit | ColumnSplit | FileSplit | DaySplit = Field(
        discriminator="by", description="how rows are divided into train, valid and test"
    )
    may_read_labels: tuple[str, ...] = Field(
        (), description="features that may read columns of which labels are made"
    )
    min_count: int = Field(
        10,
        ge=1,
        le=MAX_COUNT,
        description="rows of train a value needs for an id of its own (vocabulary)",
    )
    shuffle: bool | None = Field(
        None,
        description="train in random order; null: unless split by time or day, then ordered by it",
    )

    @property
    def shuffled(self) -> bool:
        return self.split.by not in ("time", "day") if self.shuffle is None else self.shuffle

    @property
    def ordered(self) -> bool:
        """Train is in another order than the files'."""
        return self.shuffled or self.split.by == "time"

    def feature(self, name: str) -> DescribedFeature:
        return next(feature for feature in self.features if feature.name == name)

    def owner(self, feature: DescribedFeature) -> DescribedFeature:
        """The feature whose table and encoding ``feature`` uses, itself or another."""
        return feature if feature.table is None else self.feature(feature.table)

    def tells_apart(self, feature: DescribedFeature) -> bool:
        """Whether it matters of a feature's values only which ones are the same: they are
        numbered, hashed or counted."""
        is_hashed = self.owner(feature).encoding in ("vocabulary", "hash")
        return is_hashed if feature.kind != "dense" else feature.transform == "count"

    @model_validator(mode="after")
    def _names_fit_together(self) -> "Description":
        names = [feature.name for feature in self.features]
        optional = [GROUP_COLUMN] * (self.group is not None)
        optional += [WEIGHT_COLUMN] * (self.sample_weight is not None)
        refuse_doubled("columns", [name.lower() for name in (*names, *self.labels, *optional)])
        for key, name in (("user", self.user), ("item", self.item)):
            if name is not None and name not in names:
                raise ValueError(f"{key}: unknown feature {name!r}; features: {', '.join(names)}")
        for name in self.may_read_labels:
            if name not in names:
                raise ValueError(
                    f"may_read_labels: unknown feature {name!r}; features: {', '.join(names)}"
                )
        for key, named in (("features", names), ("labels", [*self.labels])):
            if taken := next((name for name in named if name.lower() in RESERVED_NAMES), None):
                raise ValueError(f"{key}: {taken!r} is a name of the engine's; take another")
        for feature in self.features:
            _check_sharing(self, feature, names)
        return self


def _check_sharing(description: Description, feature: DescribedFeature, names: list[str]) -> None:
    if feature.table is None:
        return
    if feature.table not in names:
        raise ValueError(f"{feature.name}.table: unknown {feature.table!r}; {', '.join(names)}")
    owner = description.feature(feature.table)
    if owner.kind == "dense" or owner.table is not None:
        raise ValueError(f"{feature.name}.table: {owner.name!r} has no table of its own")
    if owner.encoding == "bucket":
        raise ValueError(f"{feature.name}.table: {owner.name!r} has buckets of its own values")
