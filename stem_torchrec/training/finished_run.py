"""What can be asked of a finished run: metrics, predictions, tables, gates."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.tables import whole_tables
from stem_torchrec.nn import Gates
from stem_torchrec.runs.records import Record, last_test, read_records
from stem_torchrec.runs.replayed import read_replayed
from stem_torchrec.runs.schema import schema_of_run
from stem_torchrec.storage.place import Place
from stem_torchrec.training.evaluating import Counted, evaluate, predict
from stem_torchrec.training.evaluation import Joined
from stem_torchrec.training.session import Session, build, open_split

Tables = dict[str, dict[str, NDArray[np.float32]]]
"""Owner -> feature's name -> (rows, D)."""


class MeanGates(NamedTuple):
    """Mean weights of some gates over the rows of a split.

    Attributes:
        gates: names of the G gates, as a rule tasks.
        groups: whose each of the K experts is.
        weights: (G, K); a row sums to 1.
    """

    gates: tuple[str, ...]
    groups: tuple[str, ...]
    weights: NDArray[np.float64]


def unfinished(run_dir: Place) -> str | None:
    """Why no checkpoint of a run is of the weights that its last test record tells of.

    None if one is, and where there is no such record.
    """
    test = last_test(read_records(run_dir))
    saved = checkpoint.saved_steps(run_dir / checkpoint.FOLDER)
    if test is None or test["step"] in saved:
        return None
    kept = f"the newest is of step {saved[-1]}" if saved else "there is none"
    return f"no checkpoint of step {test['step']}, which its test record is of: {kept}"


def unfinished_replay(run_dir: Place) -> str | None:
    """Why a replay is not through all its days; None if it is."""
    replayed = read_replayed(run_dir)
    if replayed is None or not checkpoint.saved_steps(run_dir / checkpoint.FOLDER):
        return "it has no checkpoint of a day"
    done, days = checkpoint.newest_about(run_dir)["days_done"], len(replayed.days)
    return None if done == days else f"it is through {done} of its {days} days"


def tested(run_dir: Place) -> checkpoint.Choice:
    """The checkpoint that a run's last test record is of; the last where it has none."""
    test = last_test(read_records(run_dir))
    return "last" if test is None else int(test["step"])


def open_run(
    config: Config, ranks: Ranks, choice: checkpoint.Choice = "last", schema: Schema | None = None
) -> tuple[Session, int]:
    """A session with one of a run's checkpoints on these ranks, and its step. Collective.

    Args:
        schema: the run's, where its data is not to be read; else it is compared with ``data.path``.

    Raises:
        UserError: there is no such checkpoint, or it is damaged; says which there are.
    """
    session, _, step = _open(config, ranks, choice, schema)
    return session, step


def _open(
    config: Config, ranks: Ranks, choice: checkpoint.Choice, schema: Schema | None = None
) -> tuple[Session, Place, int]:
    """A session, the checkpoint's folder, its step."""
    folder = checkpoint.chosen_valid(config.run.dir, choice, ranks)
    session = build(config, ranks, schema or schema_of_run(config, ranks))
    saved = checkpoint.SavedStep()
    checkpoint.load(folder, {"model": session.model, "position": saved}, ranks)
    return session, folder, saved.step


def evaluate_run(
    config: Config,
    ranks: Ranks,
    split: str,
    choice: checkpoint.Choice = "last",
    counted: Counted | None = None,
) -> Record:
    """Load one of a run's checkpoints on these ranks and evaluate a split. Collective."""
    session, folder, step = _open(config, ranks, choice)
    epoch = ranks.on_first(lambda: checkpoint.epoch_of(folder))
    return evaluate(session, split, step, epoch, counted=counted)


def predict_run(
    config: Config, ranks: Ranks, split: str, choice: checkpoint.Choice = "last"
) -> Joined:
    """A run's predictions on every row of a split, in file order; on one rank.

    Columns are the run's tasks in its own order.
    """
    assert ranks.world_size == 1, "on more ranks padding stands between the rows"
    session, _ = open_run(config, ranks, choice)
    joined = predict(session, open_split(session, split, in_file_order=True))
    assert joined is not None
    return joined


def tables_of_run(
    config: Config,
    ranks: Ranks,
    features: Sequence[Feature],
    choice: checkpoint.Choice = "last",
) -> Tables:
    """A run's tables of some features, from one of its checkpoints; on one rank.

    An owner has the features that it has tables for; features with a common table share the array.
    """
    assert ranks.world_size == 1, "one rank has to hold the tables"
    session, _ = open_run(config, ranks, choice)
    owners = session.recommender.model.owners
    names = {
        owner: {f.name: f"{owner}__{f.table_name}" for f in features if f.name in of_owner}
        for owner, of_owner in owners.items()
    }
    tables = whole_tables(session.model, {n for of in names.values() for n in of.values()})
    return {
        owner: {feature: tables[name] for feature, name in of_owner.items()}
        for owner, of_owner in names.items()
    }


def mean_gates_of_run(
    config: Config, ranks: Ranks, split: str, choice: checkpoint.Choice = "last"
) -> dict[str, MeanGates]:
    """Mean gate weights over the rows of a split, by the gates' place in the model; on one rank.

    Empty for a model without gates.
    """
    assert ranks.world_size == 1, "on more ranks padding would count"
    session, _ = open_run(config, ranks, choice)
    model = session.recommender.model
    gates = {name: part for name, part in model.named_modules() if isinstance(part, Gates)}
    sums: dict[str, Tensor] = {}

    def add(part: nn.Module, _: object, weights: Tensor) -> None:
        name = next(name for name, other in gates.items() if other is part)
        sums[name] = sums.get(name, 0) + weights.double().sum(dim=1)

    hooks = [part.register_forward_hook(add) for part in gates.values()]
    reader = open_split(session, split)
    for _ in session.step.predict(reader.epoch(0)):
        pass
    for hook in hooks:
        hook.remove()
    return {
        name: MeanGates(part.names, part.groups, (sums[name] / reader.num_rows).cpu().numpy())
        for name, part in gates.items()
    }
