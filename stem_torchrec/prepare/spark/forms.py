"""The form in which a column's values are taken (see ``canonical_values``), by all rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyspark.sql import Column
from pyspark.sql import functions as F

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.spark.raw import ROW, RawTable
from stem_torchrec.prepare.spark.values import Form, forms_of, number


@dataclass(frozen=True)
class Values:
    """Values that are told apart: one of a row, or a list.

    Attributes:
        column: of the value or the list.
        forms: in which they can be taken.
    """

    column: Column
    is_list: bool
    forms: tuple[Form, ...]

    def any(self, wrong: Callable[[Column], Column]) -> Column:
        """Whether something is true of a value of the row."""
        return F.exists(self.column, wrong) if self.is_list else wrong(self.column)

    def taken(self, form: Form, type_name: str) -> Column:
        """The values as ``type_name``, which holds the form's type."""

        def one(x: Column) -> Column:
            return form.value(x).cast(type_name)

        return F.transform(self.column, one) if self.is_list else one(self.column)


def not_for_spark(key: str, text: str) -> UserError:
    """The error on an expression that only the engine of one machine reads."""
    return UserError(
        f"{key}: {text!r} is SQL of DuckDB, which Spark does not have; allowed here: a raw column, "
        "for labels also one compared with a number (COLUMN >= 4)"
    )


def plain(raw: RawTable, key: str, text: str) -> Column:
    """A raw column by its name.

    Raises:
        UserError: there is none of this name, so that it would be an expression.
    """
    if text not in raw.columns:
        raise not_for_spark(key, text)
    return raw.value(text)


def column_values(raw: RawTable, key: str, column: str, separator: str | None = None) -> Values:
    """The values of a raw column, or of the lists into which its texts are split.

    Raises:
        UserError: there is no such column, or its type has no forms here.
    """
    value, kind = plain(raw, key, column), raw.columns[column]
    is_list = separator is not None or kind.startswith("array<")
    if separator is not None:
        value = split_text(value, separator)
    element = kind.removeprefix("array<").removesuffix(">")
    stated = raw.format.type == "parquet" or column in raw.format.types
    forms = forms_of(element, is_unstated=not stated)
    if not forms:
        raise UserError(f"{key}: type {kind}; Spark takes integers and texts as ids here")
    return Values(value, is_list, forms)


def split_text(value: Column, separator: str) -> Column:
    """A text as the list that it is split into, without what is empty."""
    pattern = "".join(f"\\x{{{ord(mark):x}}}" for mark in separator)
    trimmed = F.transform(F.split(value, pattern), lambda part: F.trim(part))
    return F.filter(trimmed, lambda part: part != "")


def choose_forms(raw: RawTable, values: Mapping[str, Values]) -> tuple[dict[str, Form], list[int]]:
    """The narrowest form that fits all rows of each column, and rows that do not fit the others.

    Raises:
        UserError: whether a column holds numbers alone is not known here.
    """
    if not values:
        return {}, [-1]
    asked: dict[tuple[str, int], Column] = {}
    for name, of in values.items():
        for place, form in enumerate(of.forms):
            if form.misfit is not None:
                asked[name, place] = of.any(form.misfit)
        asked[name, -1] = of.any(lambda x: x.isNotNull() & number(x.cast("string")).isNull())
    found = raw.rows.agg(*(F.min(F.when(wrong, F.col(ROW))) for wrong in asked.values())).first()
    assert found is not None
    first = dict(zip(asked, found, strict=True))
    forms = {}
    for name, of in values.items():
        place = next(k for k in range(len(of.forms)) if first.get((name, k)) is None)
        forms[name] = of.forms[place]
        if len(of.forms) == 4 and place == 3 and first[name, -1] is None:
            raise UserError(
                f"features.{name}: its values are numbers of many digits, which Spark does not "
                "take as ids here; state VARCHAR in format.types"
            )
    return forms, [-1, *sorted({row for row in first.values() if row is not None})]
