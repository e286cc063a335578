"""Which id or count a raw value has: the vocabularies of a prepared folder, in memory.

n values.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.errors import UserError


class VocabularyIds:
    """The ids of one vocabulary; 0 for values that are not in it, and for missing ones.

    Args:
        file: ``vocab/FEATURE.parquet``: ``value`` (int64 or text), ``id`` and ``count``.
        column: ``count`` for counts in the place of ids.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, file: Path, column: str = "id") -> None:
        try:
            table = pq.read_table(file, columns=["value", column]).combine_chunks()
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(f"{file}: cannot be read as a vocabulary ({error})") from None
        values, ids = table.column("value"), table.column(column).to_numpy()
        self.num_values = len(ids)
        self.is_integer = pa.types.is_integer(values.type)
        self._sorted: NDArray[np.int64] | None = None
        self._by_text: dict[Any, int] = {}
        if self.is_integer:
            numbers = values.to_numpy()
            order = np.argsort(numbers, kind="stable")
            self._sorted, self._ids = numbers[order], ids[order].astype(np.int64)
        else:
            self._by_text = dict(zip(values.to_pylist(), ids.tolist(), strict=True))

    def __call__(self, values: pa.Array) -> NDArray[np.int64]:
        """(n,) values of the vocabulary's type -> (n,) ids."""
        if self._sorted is None:
            found = (self._by_text.get(value, 0) for value in values.to_pylist())
            return np.fromiter(found, np.int64, len(values))
        if not len(self._sorted):
            return np.zeros(len(values), np.int64)
        numbers = values.fill_null(0).to_numpy() if values.null_count else values.to_numpy()
        place = np.searchsorted(self._sorted, numbers).clip(max=len(self._sorted) - 1)
        ids = np.where(self._sorted[place] == numbers, self._ids[place], 0)
        if values.null_count:
            ids[values.is_null().to_numpy(zero_copy_only=False)] = 0
        return ids
