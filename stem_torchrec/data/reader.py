"""Stream one rank's share of a split from Parquet, epoch by epoch."""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import Any

from stem_torchrec.config.days import Days
from stem_torchrec.data import shares
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.collate import Collator
from stem_torchrec.data.columns import Columns, concatenate
from stem_torchrec.data.division import whole
from stem_torchrec.data.manifest import Manifest, check_split
from stem_torchrec.data.negatives import NegativeSampling
from stem_torchrec.data.position import ReadPosition, position_from
from stem_torchrec.data.prefetch import prefetched
from stem_torchrec.data.schema import Schema
from stem_torchrec.data.windows import WindowReader
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, place_of


class ParquetReader:
    """Batches of one rank, from row groups that are read, checked and permuted in the background.

    The epoch's order depends on ``seed`` and the epoch only; every rank takes a contiguous share
    of it and makes the same number of steps. Nothing here communicates. Memory holds two windows:
    the one that is being cut into batches, and the next. With one worker Arrow reads the columns
    of a row group on its own thread pool, whose size follows ``OMP_NUM_THREADS`` or
    ``pyarrow.set_cpu_count``.

    Args:
        path: prepared folder, local or in a store; the split's files are ``path/split/*.parquet``.
        schema: the features and tasks wanted; only their columns are read.
        batch_size: rows per step and rank.
        shuffle: permute row groups, then rows within windows of ``shuffle_row_groups`` of them.
        prefetch: batches prepared ahead; 0 reads in the caller's thread.
        workers: threads that read, check and permute; see ``WindowReader``. The batches are the
            same for any number.
        pin_memory: put batches in page-locked memory (needs a GPU).
        days: only files of these days; all if None.
        verify_checksums: refuse pages that differ from their checksums, where files have some.
        negatives: which rows are left out, for training; none if None. ``num_rows`` counts those
            that are left.
        unseen_rate: share of each id feature's values that are given as 0, for training.
        manifest: what ``find_rows`` has found for the same arguments; it is asked if None.

    Raises:
        UserError: as ``find_rows`` does.

    Example:
        >>> import stem_torchrec as st
        >>> schema = st.Schema.load("prepared/mine")
        >>> reader = st.ParquetReader("prepared/mine", "train", schema, batch_size=256)
        >>> reader.num_rows, reader.steps_per_epoch
        (2003, 8)
        >>> batch = next(reader.epoch(0))
        >>> batch.labels.shape, batch.dense.shape
        (torch.Size([256, 2]), torch.Size([256, 1]))
    """

    def __init__(
        self,
        path: str | Place,
        split: str,
        schema: Schema,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = False,
        seed: int = 0,
        shuffle_row_groups: int = 4,
        prefetch: int = 2,
        workers: int = 1,
        pin_memory: bool = False,
        verify_checksums: bool = True,
        days: Days | None = None,
        negatives: NegativeSampling | None = None,
        unseen_rate: float = 0.0,
        manifest: Manifest | None = None,
    ) -> None:
        assert batch_size > 0
        assert shuffle_row_groups > 0
        assert 0 <= rank < world_size
        found = manifest or find_rows(place_of(path), split, schema, days=days, negatives=negatives)
        self._row_groups = found.row_groups
        self.num_rows = found.num_rows
        self._files = found.files
        self._negatives = negatives
        self._whole = whole(self.num_rows, world_size, batch_size)
        self.steps_per_epoch = self._whole.steps
        self._rank = rank
        self._schema = schema if negatives is None else negatives.schema(schema)
        self._shuffle = shuffle
        self._seed = seed
        self._shuffle_row_groups = shuffle_row_groups
        self._prefetch = prefetch
        self._pin_memory = pin_memory
        self._windows = WindowReader(
            found.row_groups,
            schema,
            negatives=negatives,
            verify=verify_checksums,
            workers=workers,
            prefetch=prefetch,
            unseen_rate=unseen_rate,
        )

    def samples_in_step(self, step: int) -> int:
        """Real rows of all ranks in step 0 to ``steps_per_epoch - 1``; not collective."""
        return self._whole.samples_in_step(step)

    @cached_property
    def order(self) -> str:
        """Differs for readers whose epochs visit other rows, or the rows in another order."""
        sizes = [group.size for group in self._row_groups]
        shuffled = self._shuffle and (self._seed, self._shuffle_row_groups)
        settings = (sizes, shuffled, self._negatives)
        return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]

    def start(self, epoch: int = 0) -> ReadPosition:
        """The place before the first step of an epoch."""
        return ReadPosition(epoch, 0, self._whole, self.order, self._files)

    def after(self, position: ReadPosition) -> ReadPosition:
        """The place one step further on; after an epoch's last step, the next one's start."""
        if position.steps_left == 1:
            return self.start(position.epoch + 1)
        return replace(position, step=position.step + 1)

    def resumed(self, state: Mapping[str, Any]) -> ReadPosition:
        """The place that ``ReadPosition.state_dict`` describes, on this reader's ranks.

        With the same ranks and batch size the next batches are those that would have come. With
        others the rest of the epoch is divided anew; every row still comes once per epoch.

        Raises:
            UserError: it lies inside an epoch whose rows have another order here, or come from
                other files.
        """
        position = position_from(state)
        if position.is_start:
            return self.start(position.epoch)
        if position.order != self.order:
            raise UserError(
                f"--resume: the run stopped inside epoch {position.epoch} (counted from 0), and "
                "its order of rows has changed since; it depends on the files of the train split, "
                "run.seed, data.shuffle, data.shuffle_row_groups, data.days and "
                "data.negative_rate"
            )
        if position.files not in (None, self._files):
            raise UserError(
                f"--resume: the run stopped inside epoch {position.epoch} (counted from 0), and "
                "the files of the train split are others since (a name, a size or what a footer "
                "says); go on with the files it was begun with"
            )
        return position.reshaped(self._whole.world_size, self._whole.batch_size)

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The rank's ``steps_per_epoch`` batches of an epoch; see ``batches``."""
        return self.batches(self.start(epoch))

    def batches(self, position: ReadPosition) -> Generator[Batch, None, None]:
        """The rank's batches from a place to its epoch's end; what was read before is not read.

        The last batch may be smaller, equally on every rank: a rank with fewer rows left fills
        up with padding. Closing the iterator early ends its threads.

        Raises:
            UserError: a file is damaged or holds a value that is not allowed; see ``decode``.
        """
        return prefetched(self._batches(position), self._prefetch)

    def _batches(self, position: ReadPosition) -> Generator[Batch, None, None]:
        sequence = shares.EpochSequence(
            [group.size for group in self._row_groups],
            epoch=position.epoch,
            seed=self._seed,
            shuffle=self._shuffle,
            row_groups_per_window=self._shuffle_row_groups,
        )
        division, step = position.division, position.step
        pieces = sequence.pieces(division.share(self._rank, step))
        collator = Collator(self._schema)
        with closing(self._windows.rows(pieces, sequence)) as blocks:
            for columns in _rebatched(blocks, division.batch_size):
                # Row-wise sharding exchanges equal parts: no rank may have fewer rows.
                rows = division.rows_per_rank(step)
                yield self._placed(collator.padded(collator.batch(columns), rows))
                step += 1
        for _ in range(step, division.steps):
            yield self._placed(collator.padding())

    def _placed(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self._pin_memory else batch


def find_rows(
    path: Place,
    split: str,
    schema: Schema,
    *,
    days: Days | None = None,
    negatives: NegativeSampling | None = None,
) -> Manifest:
    """The row groups of a split, checked, with the rows that an epoch visits. Not collective.

    Raises:
        UserError: as ``check_split`` and ``NegativeSampling.counted`` do.
    """
    found = check_split(path, split, schema, days)
    return found if negatives is None else negatives.counted(found)


def _rebatched(blocks: Iterator[Columns], batch_size: int) -> Iterator[Columns]:
    """The same rows in runs of ``batch_size``, the last one shorter."""
    pending: list[Columns] = []
    missing = batch_size
    for block in blocks:
        start = 0
        while block.num_rows - start >= missing:
            pending.append(block.cut(start, start + missing))
            yield concatenate(pending)
            start += missing
            pending, missing = [], batch_size
        if start < block.num_rows:
            pending.append(block.cut(start, block.num_rows))
            missing -= block.num_rows - start
    if pending:
        yield concatenate(pending)
