"""How long to train, and on how many rows a step, where a run's config leaves that to its data."""

import math

from stem_torchrec.config import Config
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.schema import Schema
from stem_torchrec.training.position import ENOUGH_STEPS
from stem_torchrec.training.session import has_split

MOST_EPOCHS = 20
PATIENCE = 2
"""Passes without an improvement after which a run ends."""
FEWEST_ROWS, MOST_ROWS = 256, 4096
"""Bounds of a batch that is chosen."""


def settled(config: Config, schema: Schema) -> Config:
    """The config with ``train.epochs`` and ``train.batch_size`` given. Reads footers; not
    collective.

    ``train.epochs`` null trains until the valid split no longer improves, if nothing speaks against
    it: then patience and the best checkpoint's metric are given, too, where they are not.

    Raises:
        UserError: as ``check_split`` does.
    """
    train = config.train
    if train.epochs is not None and train.batch_size is not None:
        return config
    rows = check_split(config.data.path, "train", schema, config.data.days_of("train")).num_rows
    if train.batch_size is None:
        train = train.model_copy(update={"batch_size": batch_size_for(rows)})
    if train.epochs is None:
        judged = config.waits_for_valid and has_split(config.data.path, "valid")
        train = train.model_copy(update={"epochs": MOST_EPOCHS if judged else 1})
        if judged:
            config = _judged(config, rows / train.batch_rows)
    return config.model_copy(update={"train": train})


def batch_size_for(num_rows: int) -> int:
    """Rows of a step: a power of two, so that a pass has enough steps where it can.

    >>> [batch_size_for(rows) for rows in (20_000, 400_000, 10_000_000)]
    [256, 1024, 4096]
    """
    wanted = max(1, num_rows // ENOUGH_STEPS)
    return min(MOST_ROWS, max(FEWEST_ROWS, 1 << wanted.bit_length() - 1))


def _judged(config: Config, steps_of_a_pass: float) -> Config:
    """With an end by patience, which counts evaluations, and the best weights kept.

    Args:
        steps_of_a_pass: of one rank; on several there are fewer.
    """
    every = config.eval.every
    evaluations_of_a_pass = max(1, math.ceil(steps_of_a_pass / every)) if every else 1
    patience = config.eval.patience or PATIENCE * evaluations_of_a_pass
    evaluate = config.eval.model_copy(update={"patience": patience})
    keep_best = config.checkpoint.keep_best or config.metric
    checkpoint = config.checkpoint.model_copy(update={"keep_best": keep_best})
    return config.model_copy(update={"eval": evaluate, "checkpoint": checkpoint})
