"""A description's columns over a raw table of Spark, as ``tables/row_columns`` has them in SQL."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from stem_torchrec.config.frozen import Frozen
from stem_torchrec.data.schema import SPLITS
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.spark.forms import (
    Values,
    choose_forms,
    column_values,
    not_for_spark,
    plain,
    split_text,
)
from stem_torchrec.prepare.spark.raw import FILE, ROW, RawTable, plain_address
from stem_torchrec.prepare.spark.values import Form, hashed, is_integer, number, single
from stem_torchrec.prepare.tables.describe import (
    GROUP_COLUMN,
    WEIGHT_COLUMN,
    DescribedFeature,
    Description,
)
from stem_torchrec.prepare.tables.expressions import TIME_TYPES
from stem_torchrec.prepare.tables.split_columns import PART_COLUMN, TIME_COLUMN
from stem_torchrec.prepare.tables.splits import ColumnSplit, TimeSplit

FAULT = "_fault"

# What is read here of a description: a key that comes later is refused until it is.
_KEYS = {
    *("format", "features", "labels", "sample_weight", "group", "user", "item", "split"),
    *("may_read_labels", "min_count", "shuffle"),
    *("type", "delimiter", "header", "columns", "types", "quote", "null_strings"),
    *("name", "column", "kind", "side", "separator", "pooling", "encoding", "num_embeddings"),
    *("table", "by", "shares", "seed", "valid_from", "test_from", "train", "valid", "test"),
    "expression",  # unless it says something
}
_ENCODINGS = ("vocabulary", "hash", "identity")
_SPLITTINGS = ("random", "time", "column")
_FLOAT_MAX = 3.4e38
_COMPARISON = re.compile(r"\s*(.+?)\s*(>=|<=|<>|!=|=|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<>": operator.ne,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class _Column:
    """A column of ``rows``: its value, where the raw row is bad, and what is said of it then."""

    name: str
    value: Column
    wrong: Column
    fault: Column


@dataclass(frozen=True)
class Described:
    """A description over a raw table.

    Attributes:
        rows: a column per feature, label, group and weight, ``_time`` or ``_part`` where the split
            needs one; ``_row``, ``_file`` and ``_fault``: what is wrong with a row, or null.
        witnesses: rows by which the forms of the values were chosen.
    """

    rows: DataFrame
    witnesses: Column


def refuse_unsupported(description: Description) -> None:
    """Refuse what only the engine of one machine reads, SQL of DuckDB among it.

    Raises:
        UserError: names the key.
    """
    parts: list[tuple[str, Frozen]] = [("", description), ("format.", description.format)]
    parts += [(f"features.{feature.name}.", feature) for feature in description.features]
    parts.append(("split.", description.split))
    for prefix, part in parts:
        if (text := getattr(part, "expression", None)) is not None:
            raise not_for_spark(f"{prefix}expression", text)
        if unknown := sorted(part.model_fields_set - _KEYS):
            raise UserError(f"{prefix}{unknown[0]}: Spark does not do that here; see docs/spark.md")
    for feature in description.features:
        if feature.encoding not in _ENCODINGS:
            raise UserError(
                f"features.{feature.name}.encoding: {feature.encoding!r}; on Spark allowed: "
                f"{', '.join(_ENCODINGS)}"
            )
    if description.split.by not in _SPLITTINGS:
        raise UserError(
            f"split.by: {description.split.by!r}; on Spark allowed: {', '.join(_SPLITTINGS)}"
        )


def described(raw: RawTable, description: Description, time_type: str) -> Described:
    """Bind a description, which fits the raw columns, to all rows; a pass over the raw table.

    Args:
        time_type: DuckDB's type of the time of the split; empty if there is none.

    Raises:
        UserError: an expression or a type is one that Spark does not take here.
    """
    values = {
        feature.name: column_values(
            raw, f"features.{feature.name}", _source(feature), feature.separator
        )
        for feature in description.features
        if feature.kind != "dense" and description.owner(feature).encoding != "identity"
    }
    if description.group is not None:
        values[GROUP_COLUMN] = column_values(raw, GROUP_COLUMN, description.group)
    forms, witnesses = choose_forms(raw, values)
    columns = [
        *(_feature(raw, description, feature, values, forms) for feature in description.features),
        *(_label(raw, task, text) for task, text in description.labels.items()),
        *_weight(raw, description),
        *_group(values, forms),
        *_split(raw, description, time_type),
    ]
    faults = [F.when(column.wrong, column.fault) for column in columns]
    rows = raw.rows.select(
        *(column.value.alias(column.name) for column in columns),
        F.coalesce(*faults).alias(FAULT),
        ROW,
        FILE,
    )
    return Described(rows, F.col(ROW).isin(*witnesses))


def require_good_rows(rows: DataFrame) -> None:
    """Raise UserError for the first bad row, with its file and place in it."""
    bad = rows.where(F.col(FAULT).isNotNull()).orderBy(ROW).select(ROW, FILE, FAULT).first()
    if bad is not None:
        first = rows.where(F.col(FILE) == bad[FILE]).agg(F.min(ROW)).first()
        assert first is not None
        raise UserError(
            f"{plain_address(bad[FILE])}, row {bad[ROW] - first[0] + 1:,}: {bad[FAULT]}"
        )


def _source(feature: DescribedFeature) -> str:
    return feature.column or feature.name


def _feature(
    raw: RawTable,
    description: Description,
    feature: DescribedFeature,
    values: Mapping[str, Values],
    forms: Mapping[str, Form],
) -> _Column:
    owner, name = description.owner(feature), feature.name
    value = plain(raw, f"features.{name}", _source(feature))
    if feature.kind == "dense":
        return _dense(name, value, raw.columns[_source(feature)])
    if owner.encoding == "identity":
        assert owner.num_embeddings is not None
        parts = split_text(value, feature.separator) if feature.separator is not None else value
        return _index(feature, value, parts, owner.num_embeddings)
    shared = [f.name for f in description.features if f.name in values]
    of_table = [n for n in shared if description.owner(description.feature(n)) is owner]
    type_name = "bigint" if all(forms[n].type == "bigint" for n in of_table) else "string"
    taken = values[name].taken(forms[name], type_name)
    return _Column(name, taken, F.lit(False), F.lit(""))


def _index(feature: DescribedFeature, value: Column, parts: Column, rows: int) -> _Column:
    """A feature whose values are ids already."""

    def index(x: Column) -> Column:
        digits = F.regexp_extract(x.cast("string"), r"^([0-9]+)([.]0+)?$", 1)
        return digits.try_cast("bigint")

    def wrong(x: Column) -> Column:
        is_missing = x.isNull() | (F.lower(x.cast("string")) == "nan")
        return ~(is_missing | F.coalesce(index(x).between(0, rows - 1), F.lit(False)))

    is_bag = feature.kind == "bag"
    return _Column(
        feature.name,
        F.transform(parts, index) if is_bag else index(parts),
        F.coalesce(F.exists(parts, wrong), F.lit(False)) if is_bag else wrong(parts),
        _fault(f"id of {feature.name!r}", value, f"0 to {rows - 1}"),
    )


def _dense(name: str, value: Column, kind: str) -> _Column:
    found = single(value) if kind == "string" else value.cast("float")
    good = F.isnan(found) | found.between(-_FLOAT_MAX, _FLOAT_MAX)
    wrong = value.isNotNull() & ~F.coalesce(good, F.lit(False))
    return _Column(name, found, wrong, _fault(f"feature {name!r}", value, "a finite number"))


def _label(raw: RawTable, task: str, text: str) -> _Column:
    column, compare = text, None
    if text not in raw.columns and (parts := _COMPARISON.fullmatch(text)):
        column, compare = parts[1].strip('"'), parts
    value = plain(raw, f"labels.{task}", column)
    found = number(value) if raw.columns[column] == "string" else value.cast("double")
    if compare is not None:
        good = found.isNotNull()
        label = _OPERATORS[compare[2]](found, F.lit(float(compare[3]))).cast("tinyint")
        fault = _fault(f"label {task!r}: column {column!r}", value, "a number")
    else:
        good, label = found.isin(0.0, 1.0), found.cast("tinyint")
        fault = _fault(f"label {task!r}", value, "0, 1 or missing")
    wrong = value.isNotNull() & ~F.coalesce(good, F.lit(False))
    return _Column(task, label, wrong, fault)


def _weight(raw: RawTable, description: Description) -> Iterator[_Column]:
    if description.sample_weight is not None:
        column = description.sample_weight
        value = plain(raw, WEIGHT_COLUMN, column)
        found = single(value) if raw.columns[column] == "string" else value.cast("float")
        wrong = ~F.coalesce(found.between(0, _FLOAT_MAX), F.lit(False))
        fault = _fault(WEIGHT_COLUMN, value, "a number, 0 or more")
        yield _Column(WEIGHT_COLUMN, found, wrong, fault)


def _group(values: Mapping[str, Values], forms: Mapping[str, Form]) -> Iterator[_Column]:
    """Integers as they are, texts by their hash."""
    if GROUP_COLUMN not in values:
        return
    form = forms[GROUP_COLUMN]
    taken = values[GROUP_COLUMN].taken(form, form.type)
    if form.type == "string":
        of_text = F.shiftrightunsigned(hashed(taken, is_text=True), 1)
        taken = F.when(is_integer(taken), taken.try_cast("bigint")).otherwise(of_text)
    yield _Column(GROUP_COLUMN, taken, F.lit(False), F.lit(""))


def _split(raw: RawTable, description: Description, time_type: str) -> Iterator[_Column]:
    split = description.split
    if isinstance(split, TimeSplit):
        assert split.column is not None
        value = plain(raw, "split.column", split.column)
        time = value.try_cast("bigint")
        if time_type in TIME_TYPES:
            time = F.unix_micros(value.try_cast("timestamp"))
        fault = _fault("time of the split", value, "a time")
        yield _Column(TIME_COLUMN, time, time.isNull(), fault)
    elif isinstance(split, ColumnSplit):
        assert split.column is not None
        value = plain(raw, "split.column", split.column)
        text = F.regexp_replace(value.cast("string"), r"^(-?(?:0|[1-9][0-9]*))[.]0$", "$1")
        part = F.lit(None).cast("tinyint")
        for place, name in enumerate(SPLITS):
            if texts := split.texts(name):
                part = F.when(text.isin(*texts), F.lit(place).cast("tinyint")).otherwise(part)
        fault = _fault("value of the split", value, "listed under train, valid or test")
        yield _Column(PART_COLUMN, part, part.isNull(), fault)


def _fault(what: str, found: Column, allowed: str) -> Column:
    shown = F.coalesce(F.substring(found.cast("string"), 1, 80), F.lit("nothing"))
    return F.concat(F.lit(f"{what}: "), shown, F.lit(f" is not {allowed}"))
