"""What can be asked of a finished run: metrics, predictions, tables."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.tables import whole_tables
from stem_torchrec.evaluation import Joined
from stem_torchrec.schema import Feature
from stem_torchrec.session import Session, build, open_split
from stem_torchrec.trainer import Record, evaluate, predict

Tables = dict[str, dict[str, NDArray[np.float32]]]
"""Owner -> feature's name -> (rows, D)."""


def load_run(config: Config, ranks: Ranks) -> tuple[Session, int]:
    """A session with a run's newest checkpoint on these ranks, and its step. Collective."""
    folder = ranks.on_first(lambda: checkpoint.newest(config.run.dir))
    session = build(config, ranks)
    return session, checkpoint.load(folder, session.model, None, ranks)["step"]


def evaluate_run(config: Config, ranks: Ranks, split: str) -> Record:
    """Load a run's newest checkpoint on these ranks and evaluate a split. Collective."""
    session, step = load_run(config, ranks)
    return evaluate(session, split, step)


def predict_run(config: Config, ranks: Ranks, split: str) -> Joined:
    """A run's predictions on every row of a split, in file order; on one rank.

    The newest checkpoint is used. Columns are the run's tasks in its own order.
    """
    assert ranks.world_size == 1, "on more ranks padding stands between the rows"
    session, _ = load_run(config, ranks)
    joined = predict(session, open_split(session, split, in_file_order=True))
    assert joined is not None
    return joined


def tables_of_run(config: Config, ranks: Ranks, features: Sequence[Feature]) -> Tables:
    """A run's tables of some features, from its newest checkpoint; on one rank.

    An owner has the features that it has tables for; features with a common table share the array.
    """
    assert ranks.world_size == 1, "one rank has to hold the tables"
    session, _ = load_run(config, ranks)
    owners = session.model.module.recommender.model.owners
    names = {
        owner: {f.name: f"{owner}__{f.table_name}" for f in features if f.name in of_owner}
        for owner, of_owner in owners.items()
    }
    tables = whole_tables(session.model, {n for of in names.values() for n in of.values()})
    return {
        owner: {feature: tables[name] for feature, name in of_owner.items()}
        for owner, of_owner in names.items()
    }
