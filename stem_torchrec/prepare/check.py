"""Verify a prepared folder: everything that is wrong with it, not only the first of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.data.decode import check_values
from stem_torchrec.data.dense_scale import Moments, scale_warnings
from stem_torchrec.data.manifest import (
    ColumnUse,
    RowGroup,
    check_type,
    column_uses,
    split_files,
)
from stem_torchrec.data.parquet_file import open_parquet_file, type_family, unreadable
from stem_torchrec.data.schema import SPLITS, Schema, load_schema
from stem_torchrec.errors import StoreUnreachable, UserError
from stem_torchrec.prepare.check_metadata import check_days, check_stats, check_vocabularies
from stem_torchrec.prepare.engine.split_counts import SplitCounts
from stem_torchrec.prepare.engine.stages import Unseen, Watcher
from stem_torchrec.storage.place import Place

_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Checked:
    """Faults in the order in which they were found, and what the splits hold."""

    tasks: tuple[str, ...]
    faults: list[str]
    splits: list[SplitCounts]

    @property
    def warnings(self) -> list[str]:
        """What is allowed in train, and not what one would want."""
        dense = next((split.dense for split in self.splits if split.name == "train"), {})
        return scale_warnings({name: found.scale for name, found in dense.items()})


def check_folder(folder: Place, watcher: Watcher | None = None) -> Checked:
    """Read the whole folder once, a part of a row group at a time.

    Checked are the types and values that ``decode`` allows, types that change between files,
    ``stats.json`` and the vocabularies. Of a column's faults in one row group the first is named.

    Raises:
        UserError: there is no schema to check against, or a store is unreachable.
    """
    schema, watcher = load_schema(folder), watcher or Unseen()
    faults: list[str] = []
    splits = []
    for split in SPLITS:
        if split == "train" or (folder / split).is_dir():
            check = _SplitCheck(schema, split)
            with watcher.stage(f"check {split}", check.share):
                check.read(folder)
            faults += check.faults
            splits.append(check.counts)
    with watcher.stage("check vocabularies", lambda: -1):
        faults += check_vocabularies(folder, schema) + check_days(folder)
    faults += check_stats(folder, schema, splits)
    return Checked(schema.task_names, list(dict.fromkeys(faults)), splits)


class _SplitCheck:
    """One pass over a split."""

    def __init__(self, schema: Schema, split: str) -> None:
        self.counts = SplitCounts(split, labels=dict.fromkeys(schema.task_names, (0, 0)))
        self.faults: list[str] = []
        self._uses = list(dict.fromkeys(column_uses(schema)))
        self._tasks = schema.tasks
        self._first_types: dict[str, tuple[pa.DataType, Place]] = {}
        self._bytes, self._bytes_read = 0, 0

    def share(self) -> float:
        """Of the split's bytes how many are read, in percent."""
        return 100 * self._bytes_read / self._bytes if self._bytes else -1

    def read(self, folder: Place) -> None:
        with self._fault():
            files = split_files(folder, self.counts.name)
            self.counts.files = len(files)
            self._bytes = sum(file.stat().st_size for file in files)
            for file in files:
                with self._fault():
                    self._read_file(file)
            if not self.counts.rows:
                raise UserError(f"{folder / self.counts.name}: the files have no rows")
        self.counts.is_sound = not self.faults

    @contextmanager
    def _fault(self) -> Iterator[None]:
        try:
            yield
        except StoreUnreachable:
            raise
        except UserError as error:
            self.faults.append(str(error).removeprefix("data.path: "))

    def _read_file(self, file: Place) -> None:
        try:
            opened = open_parquet_file(file, verify=True)
        except (pa.ArrowException, OSError) as error:
            raise unreadable(file, error) from None
        with opened:
            fitting = [use for use in self._uses if self._has_type(file, opened.schema_arrow, use)]
            footer = opened.metadata
            for index in range(footer.num_row_groups):
                group = RowGroup(file, index, footer.row_group(index).num_rows)
                self.counts.rows += group.num_rows
                self.counts.row_groups += 1
                self._read_row_group(opened, group, fitting)
                columns = (footer.row_group(index).column(k) for k in range(footer.num_columns))
                self._bytes_read += sum(column.total_compressed_size for column in columns)

    def _has_type(self, file: Place, arrow_schema: pa.Schema, use: ColumnUse) -> bool:
        index = arrow_schema.get_field_index(use.column)
        found = arrow_schema.field(index).type if index >= 0 else None
        changed = self._change(file, use.column, found) if found else ""
        try:
            check_type(file, arrow_schema, use)
        except UserError as error:
            self.faults.append(f"{error}{changed}")
            return False
        if changed:
            self.faults.append(
                f"{file}: {use.role} column {use.column!r} has type {found}{changed}"
            )
        return True

    def _change(self, file: Place, column: str, found: pa.DataType) -> str:
        first, first_file = self._first_types.setdefault(column, (found, file))
        return "" if type_family(first) == type_family(found) else f"; {first_file} has {first}"

    def _read_row_group(
        self, opened: pq.ParquetFile, group: RowGroup, uses: Sequence[ColumnUse]
    ) -> None:
        try:
            self._read_columns(opened, group, uses)
        except (pa.ArrowException, OSError) as error:
            if len(uses) == 1:
                raise unreadable(f"{group}, column {uses[0].column!r}", error) from None
            for use in uses:  # which of them is damaged?
                with self._fault():
                    self._read_row_group(opened, group, [use])

    def _read_columns(
        self, opened: pq.ParquetFile, group: RowGroup, uses: Sequence[ColumnUse]
    ) -> None:
        wrong: set[ColumnUse] = set()
        columns = list(dict.fromkeys(use.column for use in uses))
        counts = dict(self.counts.labels)
        batches = opened.iter_batches(_BATCH_ROWS, row_groups=[group.index], columns=columns)
        for batch in batches:
            table = pa.Table.from_batches([batch])
            for use in uses:
                if use not in wrong:
                    wrong.add(use)
                    with self._fault():
                        values = check_values(table, use, str(group))
                        wrong.remove(use)
                        if use.role == "label":
                            self._count(values, use.column, counts)
                        elif use.role == "dense":
                            moments = self.counts.dense.get(use.column, Moments())
                            self.counts.dense[use.column] = moments.with_values(values)
        self.counts.labels = counts

    def _count(
        self, labels: NDArray[np.float32], column: str, counts: dict[str, tuple[int, int]]
    ) -> None:
        num_observed = int(np.count_nonzero(~np.isnan(labels)))
        num_positive = int(np.count_nonzero(labels == 1))
        for task in self._tasks:
            if task.label_column == column:
                observed, positive = counts[task.name]
                counts[task.name] = (observed + num_observed, positive + num_positive)
