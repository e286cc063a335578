"""What a finished run's metrics are when one feature tells it nothing of the row."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stem_torchrec.checkpoint import Choice
from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.permuted import column_of, with_column
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.training.evaluating import predict_batches
from stem_torchrec.training.evaluation import evaluation
from stem_torchrec.training.finished_run import open_run
from stem_torchrec.training.session import Session, open_split

Metrics = dict[str, Any]
"""As ``evaluation`` gives them."""


class Permuted(NamedTuple):
    """Metrics of a split.

    Attributes:
        as_it_is: with every feature in its place.
        by_feature: feature -> metrics of each repetition.
    """

    as_it_is: Metrics
    by_feature: dict[str, list[Metrics]]


def permuted_metrics(
    config: Config,
    ranks: Ranks,
    split: str,
    features: Sequence[str],
    repeats: int,
    choice: Choice = "last",
) -> Permuted:
    """Permute one feature at a time over all rows of a split, ``repeats`` times; on one rank.

    Repetition r draws the same order for every feature and run. One
    feature's column is in memory at a time.
    """
    assert ranks.world_size == 1, "the rows of one rank are not those of the split"
    session, _ = open_run(config, ranks, choice)
    reader = open_split(session, split, in_file_order=True)
    by_feature = {}
    for name in features:
        column = column_of(session.schema, name, reader.epoch(0))
        by_feature[name] = [
            _metrics(
                session,
                with_column(session.schema, name, reader.epoch(0), column.shuffled(repeat)),
            )
            for repeat in range(repeats)
        ]
    return Permuted(_metrics(session, reader.epoch(0)), by_feature)


def _metrics(session: Session, batches: Iterator[Batch]) -> Metrics:
    return evaluation(session.schema.task_names, predict_batches(session, batches))
