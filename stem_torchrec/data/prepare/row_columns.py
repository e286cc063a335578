"""The columns of the table ``rows`` as SQL over raw columns, and what makes a raw row a bad one.

Columns: one per feature (BIGINT or VARCHAR, a list of those, or FLOAT) and per label (TINYINT), the
group (BIGINT) and the weight (FLOAT) if there are any, ``_time`` (BIGINT) or ``_part`` (TINYINT)
where the split needs one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import duckdb

from stem_torchrec.data.prepare.describe import (
    GROUP_COLUMN,
    WEIGHT_COLUMN,
    ColumnSplit,
    DescribedFeature,
    Description,
    Scalar,
    TimeSplit,
)
from stem_torchrec.data.prepare.expressions import (
    TIME_TYPES,
    Expression,
    bind,
    bind_value,
    bound_features,
)
from stem_torchrec.data.prepare.raw_files import RawFiles
from stem_torchrec.data.prepare.row_hash import hash_sql
from stem_torchrec.data.prepare.working_database import literal
from stem_torchrec.errors import UserError
from stem_torchrec.schema import SPLITS

TIME_COLUMN, PART_COLUMN = "_time", "_part"

_FLOAT_MAX = "3.4e38::FLOAT"


@dataclass(frozen=True)
class Column:
    """A column of ``rows``.

    Attributes:
        wrong: SQL that is true where the raw row is bad; None if it cannot be.
        fault: SQL of a text that says what is wrong, ``what: value is ...``.
        is_integer: a feature's values are BIGINT.
        is_text: its size differs from row to row: a text, or a list of values.
        type: DuckDB's type of the raw value.
    """

    name: str
    sql: str
    wrong: str | None = None
    fault: str = ""
    is_integer: bool = field(default=False, kw_only=True)
    is_text: bool = field(default=False, kw_only=True)
    type: str = field(default="", kw_only=True)


def row_columns(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> dict[str, Column]:
    """Bind a description to raw files; columns by name.

    Raises:
        UserError: an expression does not fit the raw columns or its use.
    """
    columns = [
        *_features(connection, raw, description),
        *_labels(connection, raw, description),
        *_optional(connection, raw, description),
        *_split(connection, raw, description),
    ]
    return {column.name: column for column in columns}


def time_sql(sql: str, type_name: str) -> str:
    """A time as a BIGINT: integers as they are, dates and timestamps as microseconds."""
    return f"epoch_us(({sql})::TIMESTAMP)" if type_name in TIME_TYPES else f"({sql})::BIGINT"


def _features(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> Iterator[Column]:
    bound = bound_features(connection, raw, description)
    # Features of one table have values of one type, so that equal ones get one id.
    texts = {
        description.owner(f).name for f in description.features if not bound[f.name].is_integer
    }
    for feature in description.features:
        value, owner = bound[feature.name], description.owner(feature)
        if feature.kind == "dense":
            yield _dense(feature.name, value)
            continue
        sql = _values(feature, value.sql)
        identity = owner.encoding == "identity"
        is_integer = identity or owner.name not in texts
        target = ("BIGINT" if is_integer else "VARCHAR") + "[]" * (feature.kind == "bag")
        column = f"TRY_CAST({sql} AS {target})"
        is_text = target != "BIGINT"
        if not identity:
            yield Column(feature.name, column, is_integer=is_integer, is_text=is_text)
            continue
        assert owner.num_embeddings is not None
        wrong = _outside(sql, owner.num_embeddings, is_bag=feature.kind == "bag")
        what, allowed = f"id of {feature.name!r}", f"0 to {owner.num_embeddings - 1}"
        fault = _fault(what, value.sql, allowed)
        yield Column(feature.name, column, wrong, fault, is_integer=True, is_text=is_text)


def _values(feature: DescribedFeature, sql: str) -> str:
    if feature.separator is None:
        return sql
    parts = f"string_split({sql}, {literal(feature.separator)})"
    return f"[trim(v) for v in {parts} if trim(v) <> '']"


def _outside(sql: str, num_embeddings: int, *, is_bag: bool) -> str:
    value = "v" if is_bag else sql
    number = f"TRY_CAST({value} AS DOUBLE)"
    good = f"{number} BETWEEN 0 AND {num_embeddings - 1} AND {number} = floor({number})"
    wrong = f"{value} IS NOT NULL AND NOT coalesce({good}, false)"
    return f"len([v for v in {sql} if {wrong}]) > 0" if is_bag else wrong


def _dense(name: str, value: Expression) -> Column:
    number = f"TRY_CAST({value.sql} AS FLOAT)"
    good = f"isnan({number}) OR {number} BETWEEN -{_FLOAT_MAX} AND {_FLOAT_MAX}"
    wrong = f"{value.sql} IS NOT NULL AND NOT coalesce({good}, false)"
    return Column(name, number, wrong, _fault(f"feature {name!r}", value.sql, "a finite number"))


def _labels(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> Iterator[Column]:
    for task, text in description.labels.items():
        value = bind(connection, raw, f"labels.{task}", text)
        number = f"TRY_CAST({value.sql} AS DOUBLE)"
        sql = f"CASE {number} WHEN 1 THEN 1 WHEN 0 THEN 0 END::TINYINT"
        wrong = f"{value.sql} IS NOT NULL AND NOT coalesce({number} IN (0, 1), false)"
        yield Column(task, sql, wrong, _fault(f"label {task!r}", value.sql, "0, 1 or missing"))


def _optional(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> Iterator[Column]:
    if description.sample_weight is not None:
        value = bind(connection, raw, WEIGHT_COLUMN, description.sample_weight)
        number = f"TRY_CAST({value.sql} AS FLOAT)"
        wrong = f"NOT coalesce({number} BETWEEN 0 AND {_FLOAT_MAX}, false)"
        fault = _fault(WEIGHT_COLUMN, value.sql, "a number, 0 or more")
        yield Column(WEIGHT_COLUMN, number, wrong, fault)
    if description.group is not None:
        value = bind(connection, raw, GROUP_COLUMN, description.group)
        hashed = hash_sql(f"({value.sql})::VARCHAR", is_integer=False)
        sql = value.sql if value.is_integer else f"({hashed} >> 1)"
        yield Column(GROUP_COLUMN, f"({sql})::BIGINT")


def _split(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> Iterator[Column]:
    split = description.split
    if isinstance(split, TimeSplit):
        value = bind_value(connection, raw, "split", split.column, split.expression)
        if not value.is_integer and value.type not in TIME_TYPES:
            raise UserError(
                f"{value.key}: type {value.type}; a time is an integer, a date or a timestamp"
            )
        sql = time_sql(value.sql, value.type)
        fault = _fault("time of the split", value.sql, "a time")
        yield Column(TIME_COLUMN, sql, f"({sql}) IS NULL", fault, type=value.type)
    elif isinstance(split, ColumnSplit):
        value = bind_value(connection, raw, "split", split.column, split.expression)
        cases = [
            f"WHEN ({value.sql})::VARCHAR IN ({_literals(values)}) THEN {number}"
            for number, name in enumerate(SPLITS)
            if (values := getattr(split, name))
        ]
        sql = f"CASE {' '.join(cases)} END::TINYINT"
        fault = _fault("value of the split", value.sql, "listed under train, valid or test")
        yield Column(PART_COLUMN, sql, f"({sql}) IS NULL", fault)


def _fault(what: str, found: str, allowed: str) -> str:
    shown = f"coalesce(left(({found})::VARCHAR, 80), 'nothing')"
    return f"concat({literal(what + ': ')}, {shown}, {literal(' is not ' + allowed)})"


def _literals(values: tuple[Scalar, ...]) -> str:
    texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
    return ", ".join(literal(text) for text in texts)
