"""Stated, stable hashes: the same numbers in Python and, as SQL, in DuckDB.

An integer v is hashed by the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) applied to
v modulo 2^64, a text by the first 8 bytes, big-endian, of the SHA-256 of its UTF-8 form. A text
that is the canonical form of an integer is that integer (see ``canonical_values``).
"""

import hashlib
from collections.abc import Callable

from stem_torchrec.prepare.engine.canonical_values import Value, canonical, is_integer_sql

HASH_FUNCTION = "canonical-splitmix64-sha256"
"""Its name in ``schema.json``: another function, or other values for it, need another name."""

_MASK = 2**64 - 1
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(value: int) -> int:
    """SplitMix64's finalizer: a bijection of 64-bit numbers."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def hash_value(value: Value) -> int:
    """The 64-bit hash of a value that is not missing."""
    found = canonical(value)
    assert found is not None
    if isinstance(found, int):
        return mix(found)
    return int.from_bytes(hashlib.sha256(found.encode()).digest()[:8], "big")


def hashed_id(value: Value | None, num_embeddings: int) -> int:
    """The id that ``encoding: hash`` gives a value: 1 to ``num_embeddings - 1``, missing is 0."""
    found = None if value is None else canonical(value)
    return 0 if found is None else 1 + hash_value(found) % (num_embeddings - 1)


def mix_sql(value: str) -> str:
    """``mix`` of a UBIGINT expression."""
    for shift, multiplier in ((30, MULTIPLIERS[0]), (27, MULTIPLIERS[1])):
        value = f"stem_multiply(stem_shift({value}, {shift}), {multiplier})"
    return f"stem_shift({value}, 31)"


# The product of two 64-bit numbers fits 128 bits, so nothing overflows before the mask.
HASH_MACROS = (
    "CREATE OR REPLACE TEMP MACRO stem_shift(x, k) AS xor(x, x >> k)",
    "CREATE OR REPLACE TEMP MACRO stem_multiply(x, k) AS "
    f"((x::UHUGEINT * k::UHUGEINT) & {_MASK}::UHUGEINT)::UBIGINT",
    f"CREATE OR REPLACE TEMP MACRO stem_mix(x) AS {mix_sql('x')}",
)


def hash_sql(value: str, *, is_integer: bool) -> str:
    """``hash_value`` of a BIGINT or canonical VARCHAR expression; needs ``HASH_MACROS``."""
    if is_integer:
        return f"stem_mix(({value}::HUGEINT & {_MASK}::HUGEINT)::UBIGINT)"
    integer = hash_sql(f"TRY_CAST({value} AS BIGINT)", is_integer=True)
    text = f"('0x' || left(sha256({value}), 16))::UBIGINT"
    return f"CASE WHEN {is_integer_sql(value)} THEN {integer} ELSE {text} END"


def hashed_id_sql(value: str, num_embeddings: int, *, is_integer: bool) -> str:
    """``hashed_id`` of a BIGINT or VARCHAR expression; needs ``HASH_MACROS``."""
    hashed = hash_sql(value, is_integer=is_integer)
    return f"coalesce((1 + {hashed} % {num_embeddings - 1})::BIGINT, 0)"


def row_key(stream: int, seed: int) -> Callable[[int], int]:
    """A 64-bit number per row position: no two of one stream are equal, so an order by it is a
    permutation that depends on (stream, seed) alone."""
    mask = row_mask(stream, seed)
    return lambda position: mix(position ^ mask)


def row_key_sql(stream: int, seed: int) -> str:
    """``row_key`` of the pseudo-column ``rowid``; needs ``HASH_MACROS``."""
    return f"stem_mix(xor(rowid::UBIGINT, {row_mask(stream, seed)}::UBIGINT))"


def row_mask(stream: int, seed: int) -> int:
    """What tells the orders of two streams or seeds apart: positions are mixed with it."""
    return hash_value(f"{stream}:{seed}")
