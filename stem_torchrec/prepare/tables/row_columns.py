"""The columns of the table ``rows`` as SQL over raw columns, and what makes a raw row a bad one.

Columns: one per feature (BIGINT or VARCHAR, a list of those, or FLOAT) and per label (TINYINT), the
group (BIGINT) and the weight (FLOAT) if there are any, that of the split (``split_columns``), and
``_missing TABLE`` (BOOLEAN) where a key may have no row there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date

import duckdb

from stem_torchrec.prepare.engine.canonical_values import (
    INTEGER_TYPES,
    Form,
    common_form,
    is_integer_sql,
)
from stem_torchrec.prepare.engine.row_hash import hash_sql
from stem_torchrec.prepare.engine.sql import literal
from stem_torchrec.prepare.tables.column import Column, fault_sql
from stem_torchrec.prepare.tables.describe import (
    GROUP_COLUMN,
    WEIGHT_COLUMN,
    DescribedFeature,
    Description,
)
from stem_torchrec.prepare.tables.expressions import Expression, bind, bound_features
from stem_torchrec.prepare.tables.leaks import refuse_leaks
from stem_torchrec.prepare.tables.raw.files import RawFiles
from stem_torchrec.prepare.tables.raw.written import number_text
from stem_torchrec.prepare.tables.split_columns import split_columns
from stem_torchrec.prepare.tables.value_forms import EarlierValues, Values, choose_forms

_FLOAT_MAX = "3.4e38::FLOAT"


def row_columns(
    connection: duckdb.DuckDBPyConnection,
    raw: RawFiles,
    description: Description,
    *,
    day: date | None = None,
    earlier: EarlierValues | None = None,
    of_all_rows: bool = False,
) -> dict[str, Column]:
    """Bind a description to raw files; columns by name.

    Args:
        day: of all rows, where they do not say it themselves.
        earlier: how the days before were read, whose ids these rows take.
        of_all_rows: look at every row for the form of each column's values, so that none is a
            misfit; else the first rows tell, and a later one may be.

    Raises:
        UserError: an expression does not fit the raw columns or its use, or gives away a label.
    """
    features = bound_features(connection, raw, description)
    labels = {
        task: bind(connection, raw, f"labels.{task}", text)
        for task, text in description.labels.items()
    }
    refuse_leaks(
        description,
        {name: value.reads for name, value in features.items()},
        {task: value.decides for task, value in labels.items()},
    )
    values = _values(description, features)
    group = None
    if description.group is not None:
        group = bind(connection, raw, GROUP_COLUMN, description.group)
        values[GROUP_COLUMN] = Values.of(group)
    earlier = earlier or EarlierValues({}, frozenset())
    values = {name: replace(v, first_form=earlier.forms.get(name)) for name, v in values.items()}
    forms = choose_forms(connection, raw, values, of_all_rows=of_all_rows)
    columns = [
        *_features(description, features, values, forms, earlier.text_tables),
        *(_label(task, value) for task, value in labels.items()),
        *_weight(connection, raw, description),
        *([_group(group, values[GROUP_COLUMN], forms[GROUP_COLUMN])] if group else []),
        *split_columns(connection, raw, description, day),
        *_misses(raw),
    ]
    return {column.name: column for column in columns}


def missing_column(table: str) -> str:
    """The column (BOOLEAN) of rows whose key has no row in a side table."""
    return f"_missing {table}"


def _values(description: Description, features: Mapping[str, Expression]) -> dict[str, Values]:
    """Of the features whose values are numbered or hashed."""
    return {
        feature.name: Values.of(features[feature.name], _parts(feature, features[feature.name]))
        for feature in description.features
        if description.tells_apart(feature)
    }


def _parts(feature: DescribedFeature, value: Expression) -> str | None:
    if feature.separator is None:
        return None
    parts = f"string_split({value.sql}, {literal(feature.separator)})"
    return f"[trim(v) for v in {parts} if trim(v) <> '']"


def _features(
    description: Description,
    features: Mapping[str, Expression],
    values: Mapping[str, Values],
    forms: Mapping[str, Form],
    text_tables: frozenset[str],
) -> Iterator[Column]:
    # Features of one table have values of one type, so that equal ones get one id.
    shared: dict[str, list[Form]] = {}
    for feature in description.features:
        if feature.name in values:
            shared.setdefault(description.owner(feature).name, []).append(forms[feature.name])
    for feature in description.features:
        bound, owner = features[feature.name], description.owner(feature)
        if feature.name not in values:
            yield _number_column(feature, bound, owner)
        else:
            is_text = owner.name in text_tables
            type_name = "VARCHAR" if is_text else common_form(shared[owner.name])
            yield _told_apart(
                feature,
                bound,
                values[feature.name],
                forms[feature.name],
                type_name,
                is_hashed=owner.encoding == "hash",
            )


def _number_column(feature: DescribedFeature, bound: Expression, owner: DescribedFeature) -> Column:
    """A feature whose values are numbers, or ids already."""
    if feature.kind != "dense" and owner.encoding == "identity":
        assert owner.num_embeddings is not None
        return _index(feature, bound, owner.num_embeddings)
    return _dense(feature, bound)


def _told_apart(
    feature: DescribedFeature,
    bound: Expression,
    values: Values,
    form: Form,
    type_name: str,
    *,
    is_hashed: bool,
) -> Column:
    """A feature whose values are numbered or hashed."""
    is_plain = (
        feature.expression is None
        and feature.kind != "bag"
        and bound.type in (*INTEGER_TYPES, "VARCHAR")
    )
    return Column(
        name=feature.name,
        sql=values.taken(form, type_name),
        wrong=values.no_id,
        fault=fault_sql(f"id of {feature.name!r}", bound.sql, "a value that a float holds exactly"),
        misfit=values.misfit(form),
        typed=bound.typed,
        reads=bound.reads,
        later=values.of_later_rows(form, "VARCHAR" if is_hashed else type_name),
        is_plain=is_plain,
        is_plain_text=is_plain and bound.type == "VARCHAR" and values.are_plain_texts(form),
        is_text=values.is_list or type_name == "VARCHAR",
        form=values.form_number(form),
    )


def _index(feature: DescribedFeature, bound: Expression, num_embeddings: int) -> Column:
    """A feature whose values are ids already."""
    is_bag = feature.kind == "bag"
    values, type_name = _parts(feature, bound) or bound.sql, bound.element_type
    value = "v" if is_bag else values
    index, is_missing = _index_sql(value, type_name)
    wrong = f"NOT ({is_missing} OR coalesce({index} BETWEEN 0 AND {num_embeddings - 1}, false))"
    return Column(
        name=feature.name,
        sql=f"[{index} for v in {values}]" if is_bag else index,
        wrong=f"len([v for v in {values} if {wrong}]) > 0" if is_bag else wrong,
        fault=fault_sql(f"id of {feature.name!r}", bound.sql, f"0 to {num_embeddings - 1}"),
        typed=bound.typed,
        reads=bound.reads,
        is_text=is_bag,
    )


def _index_sql(value: str, type_name: str) -> tuple[str, str]:
    """SQL of a value as an index, null if it is none, and of whether it is missing."""
    if type_name == "VARCHAR":
        is_index = f"regexp_full_match({value}, '[0-9]+([.]0+)?')"
        is_missing = f"({value} IS NULL OR lower({value}) = 'nan')"
    else:
        number = f"TRY_CAST({value} AS DOUBLE)"
        is_index = f"{number} = floor({number})"
        is_missing = f"({value} IS NULL OR coalesce(isnan({number}), false))"
    return f"CASE WHEN {is_index} THEN TRY_CAST({value} AS BIGINT) END", is_missing


def _number(value: Expression, type_name: str) -> str:
    """SQL of a number, null if the value is none."""
    number = f"TRY_CAST({number_text(value.sql, value.decimal)} AS {type_name})"
    if value.type != "VARCHAR":
        return number
    return f"CASE WHEN NOT contains({value.sql}, '_') THEN {number} END"  # SQL's own digits


def _dense(feature: DescribedFeature, value: Expression) -> Column:
    """A finite number; of 64 bits where it is transformed yet."""
    is_raw = feature.kind == "dense" and feature.transform is None
    number = _number(value, "FLOAT" if is_raw else "DOUBLE")
    allowed, good = "a finite number", f"{number} BETWEEN -{_FLOAT_MAX} AND {_FLOAT_MAX}"
    if feature.transform == "log1p":
        allowed, good = "a finite number above -1, as log1p needs", f"{number} > -1 AND {good}"
    wrong = f"{value.sql} IS NOT NULL AND NOT coalesce(isnan({number}) OR {good}, false)"
    fault = fault_sql(f"feature {feature.name!r}", value.sql, allowed)
    return Column(
        name=feature.name,
        sql=number,
        wrong=wrong,
        fault=fault,
        typed=value.typed,
        reads=value.reads,
    )


def _label(task: str, value: Expression) -> Column:
    number = _number(value, "DOUBLE")
    if value.type == "VARCHAR":
        word = f"lower({value.sql})"
        number = f"CASE {word} WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE {number} END"
    sql = f"CASE {number} WHEN 1 THEN 1 WHEN 0 THEN 0 END::TINYINT"
    wrong = f"{value.sql} IS NOT NULL AND NOT coalesce({number} IN (0, 1), false)"
    fault = fault_sql(f"label {task!r}", value.sql, "0, 1 or missing")
    return Column(name=task, sql=sql, wrong=wrong, fault=fault, typed=value.typed)


def _weight(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, description: Description
) -> Iterator[Column]:
    if description.sample_weight is not None:
        value = bind(connection, raw, WEIGHT_COLUMN, description.sample_weight)
        number = _number(value, "FLOAT")
        wrong = f"NOT coalesce({number} BETWEEN 0 AND {_FLOAT_MAX}, false)"
        fault = fault_sql(WEIGHT_COLUMN, value.sql, "a number, 0 or more")
        yield Column(name=WEIGHT_COLUMN, sql=number, wrong=wrong, fault=fault, typed=value.typed)


def _group(bound: Expression, values: Values, form: Form) -> Column:
    """Integers as they are, texts by their hash."""
    taken = values.taken(form, form.type)
    if not form.is_integer:
        hashed = f"({hash_sql(taken, is_integer=False)} >> 1)::BIGINT"
        taken = (
            f"CASE WHEN {is_integer_sql(taken)} THEN TRY_CAST({taken} AS BIGINT) ELSE {hashed} END"
        )
    fault = fault_sql(GROUP_COLUMN, bound.sql, "a value that a float holds exactly")
    return Column(
        name=GROUP_COLUMN,
        sql=taken,
        wrong=values.no_id,
        fault=fault,
        misfit=values.misfit(form),
        typed=bound.typed,
        form=values.form_number(form),
    )


def _misses(raw: RawFiles) -> Iterator[Column]:
    """Whether a row has none of a table that may have none."""
    for side in raw.sides:
        if side.may_miss:
            sql = f"NOT {side.matched}"
            yield Column(name=missing_column(side.name), sql=sql, typed=frozenset())
