"""Let streams whose lengths nobody knows end in the same step on every rank."""

from collections.abc import Callable, Generator, Iterator
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist

from stem_torchrec.batch import Batch

Fill = Callable[[Batch | None, int], Batch]


class _Offer(NamedTuple):
    """A rank's next batch, and the agreement on it that is on its way."""

    batch: Batch | None
    rows: torch.Tensor
    work: dist.Work


def in_lockstep(
    batches: Iterator[Batch],
    fill: Fill,
    group: dist.ProcessGroup,
    *,
    remainder: Literal["fill", "drop"] = "fill",
) -> Generator[Batch, None, None]:
    """The rank's batches, in as many steps and with as many rows a step as on the other ranks.

    Collective in every step: one all-reduce of two integers on the host, which travels while the
    step before it computes. ``ParquetReader`` knows its steps and does not need this; a queue or a
    reader of somebody else's does.

    Args:
        batches: ends when it likes. One batch is held ahead.
        fill: (batch, B) -> the batch with padding up to B rows; of None, B rows of padding
            (``Collator.filled``).
        group: gloo group; if the steps are taken in a thread of their own, its own group, since
            all ranks must use a group in the same order.
        remainder: what happens once a rank has run out. ``fill``: it goes on with padding until
            all have, and every row comes once. ``drop``: all stop; other ranks' rows are lost.
    """
    offer = _offer(batches, group)
    while True:
        offer.work.wait()
        most, least = int(offer.rows[0]), -int(offer.rows[1])
        if most == 0 or (least == 0 and remainder == "drop"):
            return
        batch = offer.batch
        offer = _offer(batches, group)
        yield fill(batch, most)


def _offer(batches: Iterator[Batch], group: dist.ProcessGroup) -> _Offer:
    batch = next(batches, None)
    num_rows = 0 if batch is None else len(batch.labels)
    rows = torch.tensor([num_rows, -num_rows])
    work = dist.all_reduce(rows, op=dist.ReduceOp.MAX, group=group, async_op=True)
    return _Offer(batch, rows, work)
