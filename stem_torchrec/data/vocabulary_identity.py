"""What tells a vocabulary from every other one: a hash over its values in the order of their ids.

The hash is of texts, so the same values give the same one whatever their column's type: 7, "7" and
7.0 are one value.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from stem_torchrec.data.parquet_file import open_parquet_file, unreadable
from stem_torchrec.data.schema import Feature, Vocabulary
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

VOCABULARY_FOLDER = "vocab"

_BATCH_ROWS = 1 << 16


def vocabulary_file(folder: Place, feature: Feature) -> Place:
    """Where a prepared folder keeps the values of a feature's table."""
    return folder / VOCABULARY_FOLDER / f"{feature.table_name}.parquet"


def identity_of(file: Place, first: int | None = None) -> Vocabulary:
    """The identity of a vocabulary, or of its first values as if there were no more.

    SHA-256 of two SHA-256 hashes: of the texts' lengths in bytes (little-endian int64), and of
    their UTF-8 bytes, both one after the other. Values are read a few at a time.

    Args:
        file: ``vocab/FEATURE.parquet``, values in the order of their ids from 1 on.
        first: at most so many values; all if None.

    Raises:
        UserError: the file is missing or unreadable, has no column ``value``, a null there, or
            ids that do not count from 1.
    """
    lengths, texts = hashlib.sha256(), hashlib.sha256()
    num_values = 0
    try:
        with open_parquet_file(file) as opened:
            if missing := {"value", "id"} - set(opened.schema_arrow.names):
                raise UserError(f"{file}: column {min(missing)!r} is missing")
            for batch in opened.iter_batches(_BATCH_ROWS, columns=["value", "id"]):
                if first is not None:
                    batch = batch.slice(0, first - num_values)
                _check_order(file, batch, num_values)
                sizes, content = _flat(_as_text(batch.column("value")))
                lengths.update(sizes)
                texts.update(content)
                num_values += len(batch)
                if num_values == first:
                    break
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from None
    digest = hashlib.sha256(lengths.digest() + texts.digest()).hexdigest()
    return Vocabulary(num_values=num_values, sha256=digest)


def _check_order(file: Place, batch: pa.RecordBatch, before: int) -> None:
    if batch.column("value").null_count:
        raise UserError(f"{file}: column 'value' has a null")
    ids = batch.column("id").to_numpy(zero_copy_only=False)
    expected = np.arange(before + 1, before + 1 + len(batch))
    if not np.array_equal(ids, expected):
        wrong = int(np.flatnonzero(ids != expected)[0])
        raise UserError(
            f"{file}: row {before + wrong} has id {ids[wrong]}; expected {expected[wrong]}: "
            "the ids of a vocabulary count from 1"
        )


def _as_text(values: pa.Array) -> pa.Array:
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if types.is_floating(values.type):
        values = values.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**63))
        integers = pc.if_else(whole, values, 0.0).cast(pa.int64())
        return pc.if_else(whole, integers.cast(pa.string()), values.cast(pa.string())).cast(
            pa.large_string()
        )
    if types.is_binary(values.type) or types.is_large_binary(values.type):
        return values.cast(pa.large_binary())
    return values.cast(pa.string()).cast(pa.large_string())


def _flat(texts: pa.Array) -> tuple[bytes, memoryview]:
    """Lengths as little-endian int64, and all texts without gaps."""
    _, offsets_buffer, content = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, "<i8")[texts.offset : texts.offset + len(texts) + 1]
    if len(offsets) < 2 or content is None:
        return np.zeros(len(texts), "<i8").tobytes(), memoryview(b"")
    return np.diff(offsets).tobytes(), memoryview(content)[offsets[0] : offsets[-1]]
