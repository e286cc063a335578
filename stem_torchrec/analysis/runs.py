"""Finished runs to be compared: read, checked against each other, grouped by what they train.

n samples of a split, T tasks of a run.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.checkpoint import Choice, chosen_step
from stem_torchrec.config import Config
from stem_torchrec.data.manifest import check_split
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema
from stem_torchrec.errors import UserError
from stem_torchrec.runs.folder import load_run_config, require_run
from stem_torchrec.runs.schema import fitted_schema
from stem_torchrec.storage.place import Place
from stem_torchrec.training.evaluation import Joined
from stem_torchrec.training.finished_run import tested, unfinished

OVERRIDES = ("data.path", "distributed.", "eval.")
"""Keys that may differ from the run's own: where and how it is read, not what it is."""

_NOT_THE_MODEL = {"run", "versions", "checkpoint", "eval", "distributed"}
_READ_ROWS = 65536


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        schema: the features and tasks that it used.
        checkpoint: which of its checkpoints is looked at.
    """

    path: Place
    config: Config
    schema: Schema
    checkpoint: Choice = "last"

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.schema.task_names

    @property
    def seed(self) -> int:
        return self.config.run.seed


@dataclass(frozen=True)
class Model:
    """Runs that differ in nothing but the seed, in the order of their seeds."""

    name: str
    runs: tuple[Run, ...]


def read_runs(
    option: str,
    folders: Sequence[Place],
    overrides: Sequence[str] = (),
    choice: Choice | None = None,
) -> list[Run]:
    """The runs in some folders.

    Args:
        choice: of each run's checkpoints; None: the one that its test record is of.

    Raises:
        UserError: a folder holds no run or not the checkpoint, or is given twice; an override
            changes more than where and how runs are read.
    """
    for override in overrides:
        if override.startswith("--") and not override[2:].startswith(OVERRIDES):
            raise UserError(
                f"{override}: unknown option; finished runs can be read with other values of "
                "data.path, distributed.* and eval.* only"
            )
    runs: list[Run] = []
    for folder in folders:
        require_run(option, folder)
        if any(folder.resolve() == run.path.resolve() for run in runs):
            raise UserError(f"{option}: {str(folder)!r} is given twice")
        config = load_run_config(option, folder, overrides)
        checkpoint = _checkpoint(option, folder, choice)
        runs.append(Run(folder, config, fitted_schema(config).schema, checkpoint))
    return runs


def _checkpoint(option: str, folder: Place, choice: Choice | None) -> Choice:
    """``last``, or the step that is meant, so that all that is read is of one checkpoint."""
    if choice is None:
        if (missing := unfinished(folder)) is not None:
            raise UserError(f"{option}: {folder}: {missing}; go on with it: train --resume")
        return tested(folder)
    return "last" if choice == "last" else chosen_step(folder, choice)


def check_same_samples(runs: Sequence[Run], split: str) -> None:
    """Refuse runs that do not see the same rows and features.

    Raises:
        UserError: as ``check_same_data``; or the split is missing or damaged.
    """
    check_same_data(runs)
    for run in runs:
        check_split(run.config.data.path, split, run.schema, run.config.data.days_of(split))


def check_same_data(runs: Sequence[Run]) -> None:
    """Refuse runs of different data in one report; whether it is still there does not matter.

    Raises:
        UserError: another data folder (links resolved) or another choice of features than the
            first run's.
    """
    first = runs[0]
    for run in runs:
        for key, found, expected in (
            ("data.path", _data_path(run), _data_path(first)),
            ("data.features", _features(run), _features(first)),
        ):
            if found != expected:
                raise UserError(
                    f"{run.path}: {key} is {found}, but {first.path} has {expected}; "
                    "runs are compared on the same samples and features"
                )


def check_same_tasks(runs: Sequence[Run], tasks: Sequence[str]) -> None:
    """Refuse multi-task runs without the wanted tasks, or with other tasks than the first's."""
    first = runs[0]
    for run in runs:
        for task in tasks:
            if task not in run.tasks:
                raise UserError(
                    f"--tasks: {task!r} is not a task of {run.path}, which has "
                    f"{', '.join(run.tasks)}"
                )
        if set(run.tasks) != set(first.tasks):
            raise UserError(
                f"{run.path}: tasks.names is {', '.join(run.tasks)}, but {first.path} has "
                f"{', '.join(first.tasks)}; what a task gains depends on the others"
            )


def by_model(runs: Iterable[Run]) -> list[Model]:
    """Runs grouped by everything in their config that makes the model, in order of appearance.

    A group is named after model and balancing rule; groups with the same name get the keys in
    which they differ added.

    Raises:
        UserError: two runs of a group have the same seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        for one, other in pairwise(group):
            if one.seed == other.seed:
                raise UserError(
                    f"--runs: {one.path} and {other.path} are the same run: same settings, and "
                    f"run.seed {one.seed} in both"
                )
    names = _names([_settings(group[0]) for group in groups.values()])
    return [Model(name, tuple(g)) for name, g in zip(names, groups.values(), strict=True)]


def task_columns(joined: Joined, of: Sequence[str], wanted: Sequence[str]) -> Joined:
    """The wanted tasks' columns of predictions whose columns are the tasks ``of``."""
    columns = [list(of).index(task) for task in wanted]
    return Joined(
        joined.logits[:, columns], joined.labels[:, columns], joined.weights[:, columns], None
    )


def sample_ids(run: Run, split: str, features: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Ids (n,) of some id features on every row of a split, in the order of predictions."""
    schema = run.schema.select(features=features)
    data = run.config.data
    reader = ParquetReader(
        data.path, split, schema, batch_size=_READ_ROWS, days=data.days_of(split)
    )
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in features}
    for batch in reader.epoch(0):
        for name in features:
            parts[name].append(batch.sparse[name].values().numpy())
    return {name: np.concatenate(part) for name, part in parts.items()}


def _data_path(run: Run) -> str:
    return str(run.config.data.path.resolve())


def _features(run: Run) -> str:
    return ", ".join(feature.name for feature in run.schema.features)


def _settings(run: Run) -> dict[str, Any]:
    """``section.key`` -> value of what makes the model; where its data lies does not."""
    sections = run.config.model_dump(mode="json", exclude=_NOT_THE_MODEL)
    flat = {f"{s}.{key}": value for s, keys in sections.items() for key, value in keys.items()}
    return {key: value for key, value in flat.items() if key != "data.path"}


def _names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = []
    for own in settings:
        rule = own["balance.rule"]
        name = own["model.name"] + ("" if rule == "equal" else f" + {rule}")
        like = [s for s in settings if all(s[k] == own[k] for k in ("model.name", "balance.rule"))]
        different = [key for key in own if any(other[key] != own[key] for other in like)]
        names.append(" ".join([name, *(f"{key}={own[key]}" for key in different)]))
    return names
