"""The preference analysis of finished runs: contradicting pairs in the tables of each run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.analysis.pairs import Contradicting, Floats, contradicting, distances
from stem_torchrec.analysis.runs import Model, Run
from stem_torchrec.analysis.single_task import single_of
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.errors import UserError

SINGLE = "single-task"

Singles = tuple[Run, ...]
Ids = NDArray[np.int64]
OwnerTables = dict[str, NDArray[np.float32]]
ReadTables = Callable[[Run], dict[str, OwnerTables]]
"""A run -> owner -> feature's name -> (rows, D), of the user's and the item's feature."""


@dataclass(frozen=True)
class Panel:
    """Distances of the contradicting pairs in one owner's tables of one run.

    Attributes:
        near_a, near_b: of the pairs in either direction; see ``Contradicting``.
    """

    run: Run
    model: str
    owner: str
    near_a: Floats
    near_b: Floats


@dataclass(frozen=True)
class Question:
    """What is asked of the runs.

    Attributes:
        features: the user's and the item's.
        ids: of user and item on every sample, (n,) each.
    """

    tasks: Sequence[str]
    split: str
    share: float
    features: tuple[Feature, Feature]
    ids: tuple[Ids, Ids]


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        pairs: contradicting samples by the single-task runs that tell them.
        panels: the single-task runs' own tables, then each run's.
        left_out: runs with owners that lack the user's or the item's table.
    """

    question: Question
    pairs: dict[Singles, Contradicting]
    panels: list[Panel]
    left_out: list[tuple[Run, str]]


def choose_feature(schema: Schema, option: str, name: str | None, side: str) -> Feature:
    """The named id feature, or the side's with the largest table.

    Raises:
        UserError: there is none, or the name is that of another kind of feature.
    """
    allowed = {feature.name: feature for feature in schema.features if feature.kind == "id"}
    if name is not None:
        if name not in allowed:
            kinds = [feature.kind for feature in schema.features if feature.name == name]
            found = f"{name!r} is a {kinds[0]} feature" if kinds else f"unknown feature {name!r}"
            raise UserError(f"{option}: {found}; allowed are id features: {', '.join(allowed)}")
        return allowed[name]
    of_side = [feature for feature in allowed.values() if feature.side == side]
    if not of_side:
        raise UserError(
            f"{option}: the runs use no id feature of side {side!r}; name one of "
            f"{', '.join(allowed) or 'none'}"
        )
    return max(of_side, key=lambda feature: feature.num_embeddings or 0)


def analyse(
    question: Question,
    singles: Sequence[Run],
    models: Sequence[Model],
    read_tables: ReadTables,
) -> Analysis:
    """Contradicting pairs by the single-task runs of each seed, and their distances everywhere.

    One run's tables are in memory at a time, or those of a seed's single-task runs.

    Raises:
        UserError: a single-task run has no tables of its task for the two features.
    """
    found = Analysis(question, {}, [], [])
    for model in models:
        for run in model.runs:
            seed_singles = single_of(singles, question.tasks, run.seed)
            if seed_singles not in found.pairs:
                _add_singles(found, seed_singles, read_tables)
            pairs = found.pairs[seed_singles]
            tables = read_tables(run)
            for owner in tables:
                distance = _distances(question, tables[owner])
                if distance is None:
                    found.left_out.append((run, owner))
                else:
                    found.panels.append(_panel(run, model.name, owner, distance, pairs))
    return found


def _add_singles(found: Analysis, singles: Singles, read_tables: ReadTables) -> None:
    question = found.question
    tables = {run: read_tables(run) for run in dict.fromkeys(singles)}
    by_task = []
    for run, task in zip(singles, question.tasks, strict=True):
        distance = _distances(question, tables[run].get(task, {}))
        if distance is None:
            user, item = (feature.name for feature in question.features)
            raise UserError(
                f"--single: {run.path} has no tables of its own for task {task!r} and features "
                f"{user!r} and {item!r}; a single-task run needs both"
            )
        by_task.append(distance)
    pairs = contradicting(by_task[0], by_task[1], question.share)
    found.pairs[singles] = pairs
    for run, task, distance in zip(singles, question.tasks, by_task, strict=True):
        found.panels.append(_panel(run, SINGLE, task, distance, pairs))


def _panel(run: Run, model: str, owner: str, distance: Floats, pairs: Contradicting) -> Panel:
    return Panel(run, model, owner, distance[pairs.near_a], distance[pairs.near_b])


def _distances(question: Question, tables: OwnerTables) -> Floats | None:
    """Of every sample in an owner's tables; None where it lacks one of them."""
    user, item = (feature.name for feature in question.features)
    if user not in tables or item not in tables:
        return None
    return distances(tables[user], tables[item], *question.ids)
