"""Batches in which one feature's values are those of other rows.

n rows of a split, B rows of a batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.data.schema import Schema


class Column(NamedTuple):
    """One feature on every row: of row i the next ``lengths[i]`` values.

    Attributes:
        lengths: (n,) int64; 1 for a dense feature.
        values: ids, or the numbers of a dense feature.
    """

    lengths: Tensor
    values: Tensor

    def shuffled(self, seed: int) -> "Column":
        """The rows in an order drawn from the seed."""
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.lengths)))
        starts = (self.lengths.cumsum(0) - self.lengths)[order]
        lengths = self.lengths[order]
        within = torch.arange(len(self.values)) - (lengths.cumsum(0) - lengths).repeat_interleave(
            lengths
        )
        return Column(lengths, self.values[starts.repeat_interleave(lengths) + within])


def column_of(schema: Schema, name: str, batches: Iterable[Batch]) -> Column:
    """A feature's values on every row of the batches, padding left out."""
    lengths, values = [], []
    dense = [feature.name for feature in schema.dense]
    for batch in batches:
        if name in dense:
            part = batch.dense[: batch.num_samples, dense.index(name)]
            lengths.append(torch.ones(len(part), dtype=torch.int64))
            values.append(part)
        else:
            lengths.append(batch.sparse[name].lengths()[: batch.num_samples].long())
            values.append(batch.sparse[name].values())
    return Column(torch.cat(lengths), torch.cat(values))


def with_column(
    schema: Schema, name: str, batches: Iterable[Batch], column: Column
) -> Iterator[Batch]:
    """The batches, with the column's values for a feature, row by row."""
    dense = [feature.name for feature in schema.dense]
    row, ends = 0, column.lengths.cumsum(0)
    for batch in batches:
        lengths = column.lengths[row : row + batch.num_samples]
        first = int(ends[row] - lengths[0]) if len(lengths) else 0
        values = column.values[first : first + int(lengths.sum())]
        row += batch.num_samples
        if name in dense:
            numbers = batch.dense.clone()
            numbers[: len(values), dense.index(name)] = values
            yield replace(batch, dense=numbers)
        else:
            yield replace(batch, sparse=_with_ids(batch.sparse, name, lengths, values))


def _with_ids(
    sparse: KeyedJaggedTensor, name: str, lengths: Tensor, values: Tensor
) -> KeyedJaggedTensor:
    parts = {key: (part.lengths(), part.values()) for key, part in sparse.to_dict().items()}
    padded = torch.zeros_like(parts[name][0])
    padded[: len(lengths)] = lengths.to(padded.dtype)
    parts[name] = (padded, values)
    return KeyedJaggedTensor(
        keys=list(parts),
        lengths=torch.cat([lengths for lengths, _ in parts.values()]),
        values=torch.cat([values for _, values in parts.values()]),
    )
