"""Leave out negatives, and let those that stay stand for them.

Of the rows without any positive label a share ``rate`` is kept, each with weight 1 / rate; the
other rows are all kept as they are. Weighted sums over the kept rows are then unbiased for sums
over all rows: for the loss and the metrics of every task, also where a task's label is null.

He et al. ("Practical Lessons from Predicting Clicks on Ads at Facebook", 2014) train on the kept
rows unweighted and correct the probability p to p / (p + (1 - p) / rate), which lowers the logit
by -log(rate). That holds for one task alone: a row that is positive for another task is kept, so
that with several tasks each task's negatives are kept at a rate of their own that differs from
row to row. With one task both corrections have the same optimum; here the weights are used, and
the model's probabilities need no correction.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.columns import empty
from stem_torchrec.data.decode import decode_label
from stem_torchrec.data.manifest import Manifest, RowGroup
from stem_torchrec.data.open_files import OpenFiles
from stem_torchrec.data.schema import Schema
from stem_torchrec.errors import UserError

_THREADS = 4


def negative_sampling(rate: float, seed: int, schema: Schema) -> "NegativeSampling | None":
    """Sampling for the schema's tasks; None if it would keep everything."""
    if rate == 1:
        return None
    labels = tuple(dict.fromkeys(task.label_column for task in schema.tasks))
    return NegativeSampling(rate, seed, labels, schema.sample_weight)


@dataclass(frozen=True)
class NegativeSampling:
    """Which rows are kept: a function of seed, file, row group and row, not of epoch or rank.

    Attributes:
        rate: share of the rows without a positive label that is kept, in (0, 1].
        seed: non-negative.
        labels: label columns of the tasks in use, each once.
        weight: the data's column of sample weights, or None.
    """

    rate: float
    seed: int
    labels: tuple[str, ...]
    weight: str | None

    def counted(self, manifest: Manifest) -> Manifest:
        """The row groups with the rows kept of each, without those that keep none.

        Reads the label columns of the whole split once, a few files at a time; not collective.

        Raises:
            UserError: a file is damaged, a label is not 0, 1 or null, or no row is kept.
        """
        by_file = [tuple(g) for _, g in groupby(manifest.row_groups, lambda group: group.file)]
        with ThreadPoolExecutor(min(_THREADS, len(by_file))) as pool:
            groups = [group for found in pool.map(self._count, by_file) for group in found]
        if not any(group.size for group in groups):
            raise UserError(
                f"data.negative_rate: {self.rate} leaves none of {manifest.num_rows} rows: "
                "no row has a positive label"
            )
        return replace(manifest, row_groups=tuple(group for group in groups if group.size))

    def sampled(self, table: pa.Table, group: RowGroup) -> pa.Table:
        """The kept rows of a row group's table, with their weights in a column of their own."""
        negative = self._negative(table, group)
        kept = self._kept(negative, group)
        weights = np.where(negative, 1 / self.rate, 1.0)
        if self.weight is not None:
            weights *= table.column(self.weight).to_numpy()
        return table.append_column(self._column, pa.array(weights)).filter(pa.array(kept))

    def schema(self, schema: Schema) -> Schema:
        """The schema of what ``sampled`` returns."""
        return schema.model_copy(update={"sample_weight": self._column})

    @property
    def columns(self) -> list[str]:
        """The stored columns that ``sampled`` needs."""
        return [*self.labels, *([] if self.weight is None else [self.weight])]

    @property
    def _column(self) -> str:
        # With a dot, which no feature's name has.
        return f"{self.weight or 'weight'}.kept"

    def _count(self, groups: Sequence[RowGroup]) -> list[RowGroup]:
        with closing(OpenFiles()) as files:
            return [replace(g, num_kept=self._num_kept(files, g)) for g in groups]

    def _num_kept(self, files: OpenFiles, group: RowGroup) -> int:
        table = files.read(group, list(self.labels))
        return int(np.count_nonzero(self._kept(self._negative(table, group), group)))

    def _negative(self, table: pa.Table, group: RowGroup) -> NDArray[np.bool_]:
        """(R,) whether no label of the row is 1."""
        return ~np.logical_or.reduce(list(self._positive(table, group)))

    def _positive(self, table: pa.Table, group: RowGroup) -> Iterable[NDArray[np.bool_]]:
        for column in self.labels:
            labels = empty(table.num_rows, np.float32)
            decode_label(table, column, str(group), labels)
            yield labels == 1

    def _kept(self, negative: NDArray[np.bool_], group: RowGroup) -> NDArray[np.bool_]:
        name = f"{group.file.parent.name}/{group.file.name}/{group.index}"
        digest = hashlib.sha256(name.encode()).digest()
        entropy = (self.seed, int.from_bytes(digest[:8], "little"))
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        return ~negative | (generator.random(len(negative), np.float32) < self.rate)
