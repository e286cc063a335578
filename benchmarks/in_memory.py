"""A prepared folder in memory, as slots of one joined table.

N rows of a split, S slots (an id feature has one, a bag as many as its longest), R rows of all
tables, T tasks, C dense features.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.runs.schema import selected_schema


class Rows(NamedTuple):
    """Attributes: ids (N, S) in the joined table; shares (N, S) of each in its feature's sum, 0 for
    padding; dense features (N, C); labels (N, T), NaN for null."""

    ids: Tensor
    shares: Tensor
    dense: Tensor
    labels: Tensor

    def select(self, rows: Tensor | slice) -> "Rows":
        return Rows(*(part[rows] for part in self))


class Data(NamedTuple):
    """A prepared folder in memory; ``features`` (S,) is each slot's, ``num_rows`` is R."""

    schema: Schema
    features: Tensor
    num_rows: int
    splits: Mapping[str, Rows]


def load(config: Config) -> Data:
    """What the config selects of its folder; read once."""
    return _loaded(str(config.data.path), selected_schema(config))


@cache
def _loaded(folder: str, schema: Schema) -> Data:
    batches = {split: _whole(folder, split, schema) for split in SPLITS}
    widths = [
        max(int(batch.sparse[f.name].lengths().max()) for batch in batches.values())
        for f in schema.sparse
    ]
    offsets, num_rows = {}, 0
    for feature in schema.sparse:
        if feature.table_name not in offsets:
            offsets[feature.table_name] = num_rows
            num_rows += feature.num_embeddings or 0
    splits = {split: _rows(batch, schema, widths, offsets) for split, batch in batches.items()}
    slots = torch.arange(len(widths)).repeat_interleave(torch.tensor(widths))
    return Data(schema, slots, num_rows, splits)


def _whole(folder: str, split: str, schema: Schema) -> Batch:
    reader = ParquetReader(folder, split, schema, batch_size=1 << 40, prefetch=0)
    return next(reader.epoch(0))


def _rows(batch: Batch, schema: Schema, widths: list[int], offsets: Mapping[str, int]) -> Rows:
    ids, shares = [], []
    for feature, width in zip(schema.sparse, widths, strict=True):
        bags = batch.sparse[feature.name]
        lengths = bags.lengths().unsqueeze(1)
        held = torch.arange(width) < lengths
        of_feature = torch.zeros(held.shape, dtype=torch.int64)
        of_feature[held] = bags.values()
        ids.append(of_feature + offsets[feature.table_name])
        mean = feature.kind == "bag" and feature.pooling == "mean"
        shares.append(held / lengths.clamp_min(1) if mean else held.float())
    return Rows(torch.cat(ids, dim=1), torch.cat(shares, dim=1), batch.dense, batch.labels)
