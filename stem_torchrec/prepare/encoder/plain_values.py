"""Values that are raw columns as they are: taken without SQL, which costs milliseconds a call.

What is taken here is what SQL would give; where that is not certain, SQL is asked.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from stem_torchrec.prepare.encoder.definition import EncodedFeature


def plain_values(
    feature: EncodedFeature, column: pa.Array, null_strings: tuple[str, ...], *, is_integer: bool
) -> pa.Array | None:
    """A raw column as the values of a feature's vocabulary; None if it needs SQL.

    Args:
        is_integer: the vocabulary is one of integers, else of texts.
    """
    wanted = pa.int64() if is_integer else pa.string()
    try:
        if types.is_integer(column.type):
            return column.cast(pa.int64()).cast(wanted)
        if not types.is_string(column.type):
            return None
        is_null = pc.is_in(column, pa.array(null_strings, pa.string()))
        texts = pc.if_else(is_null, pa.scalar(None, pa.string()), column)
        if not is_integer:
            return texts if feature.plain_text else None
        numbers = texts.cast(pa.int64())
    except pa.ArrowInvalid:  # a number beyond 64 bits, a text that is none
        return None
    return numbers if numbers.cast(pa.string()).equals(texts) else None
