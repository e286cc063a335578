"""Raw values as what they say: the same value has the same id whatever its column's type or file.

A value is an integer where it is the canonical form of one that fits 64 bits (0, 7, -7), else a
text. A float or a decimal that holds a whole number is that integer, another one the shortest text
that gives it back (1.5), NaN is missing.

A *form* is one way in which all values of a column can be taken. A column has several, the
narrowest first; which one it takes depends on every value of the files, never on the first rows.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

INTEGER_TYPES = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
WIDE_INTEGER_TYPES = ("UBIGINT", "HUGEINT", "UHUGEINT")

# Above it a float cannot hold every integer: ids that differed are one already.
_EXACT = {"FLOAT": 2**24, "DOUBLE": 2**53}
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")

Value = int | float | Decimal | str | bool


def canonical(value: Value | None) -> int | str | None:
    """A raw value as an integer or a text; None if it is missing.

    Raises:
        ValueError: an infinite float, or a whole one above 2^53.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        value = int(value) if value == int(value) else format(value.normalize(), "f")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value) or (value.is_integer() and abs(value) > _EXACT["DOUBLE"]):
            raise ValueError(f"{value} is a float that is no id: it has lost digits")
        value = int(value) if value.is_integer() else repr(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return value


def without_zero_fraction(text: str) -> str:
    """``5.0``, as pandas writes the integers of a column in which values are missing, as ``5``."""
    return re.sub(r"^(-?(?:0|[1-9][0-9]*))\.0$", r"\1", text)


def without_zero_fraction_sql(text: str) -> str:
    """``without_zero_fraction`` of a VARCHAR expression."""
    return f"regexp_replace({text}, '^(-?(?:0|[1-9][0-9]*))[.]0$', '\\1')"


def is_integer_sql(text: str) -> str:
    """SQL: a text is the canonical form of an integer; null where the text is."""
    return f"(TRY_CAST({text} AS BIGINT)::VARCHAR IS NOT DISTINCT FROM {text})"


@dataclass(frozen=True)
class Form:
    """One way to take a column's values.

    Attributes:
        value: SQL of a raw value as ``type``, by its SQL.
        misfit: SQL that is true where a value needs a wider form; None if every value fits.
        type: BIGINT or VARCHAR.
    """

    value: Callable[[str], str]
    misfit: Callable[[str], str] | None = None
    type: str = "VARCHAR"

    @property
    def is_integer(self) -> bool:
        return self.type == "BIGINT"


@cache
def forms_of(type_name: str, *, is_unstated: bool = False) -> tuple[Form, ...]:
    """The forms of a column's values, or of the elements of its lists, the narrowest first.

    Args:
        type_name: DuckDB's type of a value.
        is_unstated: a text of a delimited file whose type nobody has said: it may be the number
            that a writer of floats has made of an integer.
    """
    if type_name in INTEGER_TYPES:
        return (Form(lambda x: f"({x})::BIGINT", type="BIGINT"),)
    if is_unstated:
        return _INTEGERS, _WHOLE_NUMBERS, _NUMBERS, _TEXTS
    if type_name in _EXACT:
        return _WHOLE_FLOATS, _FLOATS
    if type_name.startswith("DECIMAL"):
        return _through(_decimal_text)
    if type_name in WIDE_INTEGER_TYPES:
        return _through(_text)
    return (_INTEGERS, _TEXTS) if type_name == "VARCHAR" else (_TEXTS,)


def no_id_sql(value: str, type_name: str) -> str | None:
    """SQL that is true for a float that is no id, as ``canonical``; None if there is none."""
    if type_name not in _EXACT:
        return None
    is_lost = f"{value} = trunc({value}) AND abs({value}) > {_EXACT[type_name]}"
    return f"coalesce(NOT isnan({value}) AND {is_lost}, false)"  # to SQL NaN is above all numbers


def common_form(forms: Sequence[Form]) -> str:
    """The type of a table whose columns take these forms: equal values are equal in it."""
    return "BIGINT" if all(form.is_integer for form in forms) else "VARCHAR"


def _text(x: str) -> str:
    return f"({x})::VARCHAR"


def _decimal_text(x: str) -> str:
    text = _text(x)
    return f"CASE WHEN contains({text}, '.') THEN rtrim(rtrim({text}, '0'), '.') ELSE {text} END"


def _number_text(x: str) -> str:
    return (
        f"CASE WHEN lower({x}) = 'nan' THEN NULL WHEN {x} = '-0.0' THEN '0' "
        f"WHEN ends_with({x}, '.0') THEN left({x}, -2) ELSE {x} END"
    )


def _not_integer(x: str) -> str:
    return f"NOT {is_integer_sql(x)}"


def _no_number(x: str) -> str:
    """Neither an integer nor the shortest form of a float."""
    number = f"TRY_CAST({x} AS DOUBLE)"
    is_shortest = (
        f"coalesce(abs({number}) <= {_EXACT['DOUBLE']} AND {number}::VARCHAR = {x}, false)"
    )
    return f"NOT ({is_integer_sql(_number_text(x))} OR {is_shortest})"


def _float_text(x: str) -> str:
    return (
        f"CASE WHEN isnan({x}) THEN NULL WHEN {x} = trunc({x}) THEN "
        f"TRY_CAST({x} AS BIGINT)::VARCHAR ELSE ({x})::VARCHAR END"
    )


def _through(text: Callable[[str], str]) -> tuple[Form, ...]:
    """Forms of values that are looked at by their text."""
    integers = Form(
        lambda x: f"TRY_CAST({text(x)} AS BIGINT)", lambda x: _not_integer(text(x)), "BIGINT"
    )
    return integers, Form(text)


_INTEGERS = Form(lambda x: f"TRY_CAST({x} AS BIGINT)", _not_integer, "BIGINT")
_WHOLE_NUMBERS = Form(
    lambda x: f"TRY_CAST({_number_text(x)} AS BIGINT)",
    lambda x: _not_integer(_number_text(x)),
    "BIGINT",
)
_NUMBERS = Form(_number_text, _no_number)
_TEXTS = Form(_text)
_WHOLE_FLOATS = Form(
    lambda x: f"TRY_CAST({x} AS BIGINT)",
    lambda x: f"coalesce(NOT isnan({x}) AND {x} <> trunc({x}), false)",
    "BIGINT",
)
_FLOATS = Form(_float_text)
