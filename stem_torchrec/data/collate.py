"""Columns of one step -> ``Batch``.

B rows of the local batch, F id and bag features, N dense features, T tasks.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.data.columns import Bag, Columns, joined
from stem_torchrec.data.decode import NO_GROUP
from stem_torchrec.data.schema import Schema


class Collator:
    """Turns columns into batches; numpy only, so that it starts no torch threads of its own."""

    def __init__(self, schema: Schema) -> None:
        self._keys = [feature.name for feature in schema.sparse]
        self._is_bag = [feature.kind == "bag" for feature in schema.sparse]
        self._num_dense = len(schema.dense)
        self._num_tasks = len(schema.tasks)
        self._has_weight = schema.sample_weight is not None
        self._has_group = schema.group is not None
        self._ones = torch.ones(0, dtype=torch.int32)

    def batch(self, columns: Columns) -> Batch:
        """A batch of all the rows, at least one. Lengths may be shared by several batches."""
        scalars = iter(columns.scalars)
        ids = list(islice(scalars, self._is_bag.count(False)))
        dense = list(islice(scalars, self._num_dense))
        labels = list(islice(scalars, self._num_tasks))
        return Batch(
            sparse=self._sparse(iter(ids), columns),
            dense=_stacked(dense) if dense else torch.empty(columns.num_rows, 0),
            labels=_stacked(labels),
            weights=torch.from_numpy(next(scalars).copy()) if self._has_weight else None,
            groups=torch.from_numpy(next(scalars).copy()) if self._has_group else None,
            num_samples=columns.num_rows,
        )

    def padded(self, batch: Batch, num_rows: int) -> Batch:
        """The batch with rows of padding up to ``num_rows``; ``num_samples`` stays."""
        missing = num_rows - len(batch.labels)
        if missing == 0:
            return batch
        lengths = pad(batch.sparse.lengths().view(len(self._keys), -1), (0, missing)).reshape(-1)
        per_key = batch.sparse.length_per_key()
        return Batch(
            sparse=self._jagged(batch.sparse.values(), lengths, num_rows, per_key),
            dense=pad(batch.dense, (0, 0, 0, missing)),
            labels=pad(batch.labels, (0, 0, 0, missing), value=float("nan")),
            weights=None if batch.weights is None else pad(batch.weights, (0, missing)),
            groups=None
            if batch.groups is None
            else pad(batch.groups, (0, missing), value=NO_GROUP),
            num_samples=batch.num_samples,
        )

    def filled(self, batch: Batch | None, num_rows: int) -> Batch:
        """The batch, or nothing, with rows of padding up to ``num_rows``."""
        return self.padded(self.padding() if batch is None else batch, num_rows)

    def padding(self) -> Batch:
        """One row that is no sample: empty bags, null labels, weight 0."""
        lengths = torch.zeros(len(self._keys), dtype=torch.int32)
        values = torch.empty(0, dtype=torch.int64)
        return Batch(
            sparse=self._jagged(values, lengths, 1, [0] * len(self._keys)),
            dense=torch.zeros(1, self._num_dense),
            labels=torch.full((1, self._num_tasks), float("nan")),
            weights=torch.zeros(1) if self._has_weight else None,
            groups=torch.full((1,), NO_GROUP) if self._has_group else None,
            num_samples=0,
        )

    def _sparse(self, ids: Iterator[NDArray], columns: Columns) -> KeyedJaggedTensor:
        num_rows = columns.num_rows
        bags = iter(columns.bags)
        sources = [next(bags) if is_bag else next(ids) for is_bag in self._is_bag]
        parts = [source.flat if isinstance(source, Bag) else source for source in sources]
        values = torch.from_numpy(joined(parts, np.int64))
        if columns.bags:
            matrix = np.ones((len(sources), num_rows), np.int32)
            for row, source in zip(matrix, sources, strict=True):
                if isinstance(source, Bag):
                    row[:] = source.lengths
            lengths = torch.from_numpy(matrix.reshape(-1))
        else:
            if len(self._ones) != len(values):
                self._ones = torch.ones(len(values), dtype=torch.int32)
            lengths = self._ones
        return self._jagged(values, lengths, num_rows, [len(part) for part in parts])

    def _jagged(
        self, values: Tensor, lengths: Tensor, stride: int, length_per_key: list[int]
    ) -> KeyedJaggedTensor:
        # The sums per key are known here; left out, TorchRec would wait for the device for them.
        return KeyedJaggedTensor(
            keys=self._keys,
            values=values,
            lengths=lengths,
            stride=stride,
            length_per_key=length_per_key,
        )


def _stacked(columns: list[NDArray]) -> Tensor:
    """C columns of B floats -> (B, C), contiguous."""
    return torch.from_numpy(np.stack(columns, axis=1))
