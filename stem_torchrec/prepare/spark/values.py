"""``canonical_values`` and ``row_hash`` as columns of Spark: the same values, hashes and orders.

Spark has no unsigned numbers: a 64-bit hash is the signed one of the same bits. Products wrap
around where ``spark.sql.ansi.enabled`` is false, as ``prepare_with_spark`` sets it.
"""

from collections.abc import Callable
from typing import NamedTuple

from pyspark.sql import Column
from pyspark.sql import functions as F

from stem_torchrec.prepare.engine.row_hash import MULTIPLIERS, row_mask

INTEGER = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^\s*([-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?|[nN][aA][nN])\s*$"
# Of at most 15 digits: the shortest text of its float, whatever shortens it.
_SHORT_FLOAT = r"^-?(?=[0-9.]{3,16}$)(0|[1-9][0-9]*)[.](?!0000)[0-9]*[1-9]$"
_SMALLEST = -(2**63)


class Form(NamedTuple):
    """One way to take a column's values, as in ``canonical_values``.

    Attributes:
        value: of a raw value.
        misfit: whether a value needs a wider form; None if every value fits.
        type: ``bigint`` or ``string``.
    """

    value: Callable[[Column], Column]
    misfit: Callable[[Column], Column] | None = None
    type: str = "string"


def forms_of(type_name: str, *, is_unstated: bool = False) -> tuple[Form, ...]:
    """The forms of values of a type of Spark, the narrowest first; none if they are not known here.

    Args:
        is_unstated: see ``canonical_values.forms_of``.
    """
    if type_name in ("tinyint", "smallint", "int", "bigint"):
        return (Form(lambda x: x.cast("bigint"), type="bigint"),)
    if is_unstated:
        return _INTEGERS, _WHOLE_NUMBERS, _NUMBERS, _TEXTS
    return (_INTEGERS, _TEXTS) if type_name == "string" else ()


def is_integer(x: Column) -> Column:
    """A text is the canonical form of an integer, or null."""
    return x.isNull() | (x.rlike(INTEGER) & x.try_cast("bigint").isNotNull())


def number(x: Column) -> Column:
    """A text as a double, null where it is none; Java's own forms, such as 1d, are none."""
    is_nan = F.lower(F.trim(x)) == "nan"
    return F.when(
        x.rlike(_NUMBER), F.when(is_nan, F.lit(float("nan"))).otherwise(x.try_cast("double"))
    )


def single(x: Column) -> Column:
    """``number`` as a float, rounded once."""
    is_nan = F.lower(F.trim(x)) == "nan"
    nan = F.lit(float("nan")).cast("float")
    return F.when(x.rlike(_NUMBER), F.when(is_nan, nan).otherwise(x.try_cast("float")))


def hashed_id(x: Column, num_embeddings: int, *, is_text: bool) -> Column:
    """``row_hash.hashed_id`` of a bigint or of a text."""
    rest = _unsigned_rest(hashed(x, is_text=is_text), num_embeddings - 1)
    return F.coalesce(rest + 1, F.lit(0).cast("bigint"))


def hashed(x: Column, *, is_text: bool) -> Column:
    """``row_hash.hash_value``, null where the value is."""
    if not is_text:
        return mix(x)
    digits = F.substring(F.sha2(x.cast("binary"), 256), 1, 16)
    of_text = F.conv(digits, 16, -10).cast("bigint")
    return F.when(is_integer(x), mix(x.try_cast("bigint"))).otherwise(of_text)


def mix(x: Column) -> Column:
    """``row_hash.mix`` of a bigint."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        x = x.bitwiseXOR(F.shiftrightunsigned(x, shift)) * F.lit(_signed(multiplier))
    return x.bitwiseXOR(F.shiftrightunsigned(x, 31))


def row_key(row: Column, stream: int, seed: int) -> Column:
    """``row_hash.row_key`` of a row's position, moved by 2^63: its order is the unsigned one's."""
    key = mix(row.bitwiseXOR(F.lit(_signed(row_mask(stream, seed)))))
    return key.bitwiseXOR(F.lit(_SMALLEST))


def below(key: Column, share: float) -> Column:
    """Whether a ``row_key`` lies in the first ``share`` of all of them, which is below 1."""
    return key < F.lit(int(share * 2**64) + _SMALLEST)


def _unsigned_rest(x: Column, divisor: int) -> Column:
    half = F.shiftrightunsigned(x, 1) % divisor
    return (half * 2 + x.bitwiseAND(F.lit(1).cast("bigint"))) % divisor


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _number_text(x: Column) -> Column:
    return (
        F.when(F.lower(x) == "nan", F.lit(None).cast("string"))
        .when(x == "-0.0", F.lit("0"))
        .when(x.endswith(".0"), F.regexp_replace(x, "[.]0$", ""))
        .otherwise(x)
    )


def _no_number(x: Column) -> Column:
    return ~(is_integer(_number_text(x)) | x.rlike(_SHORT_FLOAT))


_INTEGERS = Form(lambda x: x.try_cast("bigint"), lambda x: ~is_integer(x), "bigint")
_WHOLE_NUMBERS = Form(
    lambda x: _number_text(x).try_cast("bigint"), lambda x: ~is_integer(_number_text(x)), "bigint"
)
_NUMBERS = Form(_number_text, _no_number)
_TEXTS = Form(lambda x: x.cast("string"))
