"""Row groups -> the rows of an epoch, window by window, in the epoch's order.

By one thread, or by several that share each window: they take its columns in blocks, and read,
check and permute a block from end to end. So memory holds no more windows however many threads
there are, and the rows and their order cannot depend on their number.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from queue import SimpleQueue

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.columns import Columns, side_by_side
from stem_torchrec.data.decode import decode, uses_in_order
from stem_torchrec.data.manifest import ColumnUse, RowGroup, column_names
from stem_torchrec.data.negatives import NegativeSampling
from stem_torchrec.data.open_files import OpenFiles
from stem_torchrec.data.prefetch import prefetched
from stem_torchrec.data.schema import Schema
from stem_torchrec.data.shares import EpochSequence, Piece
from stem_torchrec.errors import UserError

_BLOCKS_PER_WORKER = 8
"""So many that no thread waits long for another's last one."""

_Window = tuple[Piece, Columns]
_OrderOf = Callable[[], NDArray[np.int64] | None]


class WindowReader:
    """Reads the windows of a split's epochs; holds no files and no threads between them.

    Args:
        row_groups: of the split, in file order.
        schema: what is read of them.
        negatives: which rows are left out; none if None.
        verify: as in ``OpenFiles``.
        workers: threads that share a window. With 0 or 1 one thread reads and checks, Arrow
            sharing its columns among threads of its own, and the caller's permutes.
        prefetch: windows read ahead, 1 at most; 0 reads when they are asked for.
        unseen_rate: share of each id column's values that become 0, which stands for unseen ones.
    """

    def __init__(
        self,
        row_groups: Sequence[RowGroup],
        schema: Schema,
        *,
        negatives: NegativeSampling | None = None,
        verify: bool = True,
        workers: int = 1,
        prefetch: int = 1,
        unseen_rate: float = 0.0,
    ) -> None:
        self._row_groups = row_groups
        self._negatives = negatives
        self._verify = verify
        self._workers = workers
        self._prefetch = min(prefetch, 1)
        self._unseen_rate = unseen_rate
        self._num_ids = sum(feature.kind == "id" for feature in schema.sparse)
        self._stored = column_names(schema)
        self._uses = uses_in_order(schema if negatives is None else negatives.schema(schema))

    def rows(
        self, pieces: Iterable[Piece], sequence: EpochSequence
    ) -> Generator[Columns, None, None]:
        """The pieces' rows in the sequence's order.

        Raises:
            UserError: a file is damaged or holds a value that is not allowed; see ``decode``.
        """
        several = self._workers > 1
        source = self._shared(pieces, sequence) if several else self._alone(pieces)
        # One window is read while the one before is cut into batches, so that the consumer does
        # not wait at every window's end.
        with closing(prefetched(source, self._prefetch)) as windows:
            for piece, columns in windows:
                order = None if several else sequence.row_order(piece)
                if order is not None:
                    columns.select(order)
                if self._unseen_rate:
                    self._hide(columns, sequence.draws(piece, self._num_ids))
                if sequence.shuffle:
                    yield columns
                    continue
                for rows in piece.rows:
                    yield columns.cut(*rows)

    def _hide(self, columns: Columns, draws: NDArray[np.float32]) -> None:
        """Ids become 0 where their number is low: (ids, R)."""
        for index, unseen in enumerate(draws < self._unseen_rate):
            ids = columns.scalars[index]
            columns.scalars[index] = np.where(unseen, ids.dtype.type(0), ids)

    def _alone(self, pieces: Iterable[Piece]) -> Generator[_Window, None, None]:
        """Each window as it is stored."""
        with closing(OpenFiles(verify=self._verify)) as files:
            for piece in pieces:
                yield piece, self._block(files, piece, self._uses)

    def _shared(
        self, pieces: Iterable[Piece], sequence: EpochSequence
    ) -> Generator[_Window, None, None]:
        """Each window in order, its blocks of columns made by several threads."""
        blocks = self._blocks()
        # The files close after the threads that read them have ended.
        with _shelf(self._workers, self._verify) as shelf, _pool(self._workers) as pool:

            def ordered(piece: Piece, uses: Sequence[ColumnUse], order: _OrderOf) -> Columns:
                files = shelf.get()
                try:
                    columns = self._block(files, piece, uses)
                finally:
                    shelf.put(files)
                if (rows := order()) is not None:
                    columns.select(rows)
                return columns

            for piece in pieces:
                # Begun before the blocks that wait for it.
                order = pool.submit(sequence.row_order, piece).result
                made = [pool.submit(ordered, piece, uses, order) for uses in blocks]
                yield piece, side_by_side([block.result() for block in made])

    def _blocks(self) -> list[list[ColumnUse]]:
        """The columns in the order of ``Columns``, cut into runs."""
        # Sampling reads the labels for each block.
        per_worker = _BLOCKS_PER_WORKER if self._negatives is None else 1
        parts = min(self._workers * per_worker, len(self._uses))
        bounds = [len(self._uses) * part // parts for part in range(parts + 1)]
        return [self._uses[start:stop] for start, stop in pairwise(bounds)]

    def _block(self, files: OpenFiles, piece: Piece, uses: Sequence[ColumnUse]) -> Columns:
        """Some columns of a window, checked, in the order in which they are stored."""
        wanted = [use.column for use in uses if use.column in self._stored]
        wanted += [] if self._negatives is None else self._negatives.columns
        columns = list(dict.fromkeys(wanted))
        groups = [self._row_groups[index] for index in piece.window.row_groups]
        # Lazy: a row group's table can go before the next one is read.
        tables = ((group, self._table(files, group, columns)) for group in groups)
        return decode(tables, piece.window.interval.size, uses)

    def _table(self, files: OpenFiles, group: RowGroup, columns: list[str]) -> pa.Table:
        table = files.read(group, columns, use_threads=self._workers <= 1)
        if self._negatives is not None:
            table = self._negatives.sampled(table, group)
        if table.num_rows != group.size:
            raise UserError(f"{group.file}: was changed while it was being read")
        return table


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended after the block; what they have not begun is left out."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="stem_torchrec-reader")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _shelf(number: int, verify: bool) -> Iterator["SimpleQueue[OpenFiles]"]:
    """Open files for as many threads: one file is never read by two at once."""
    every = [OpenFiles(verify=verify) for _ in range(number)]
    shelf: SimpleQueue[OpenFiles] = SimpleQueue()
    for files in every:
        shelf.put(files)
    try:
        yield shelf
    finally:
        for files in every:
            files.close()
