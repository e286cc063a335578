"""The single-task runs that others are compared with, matched by task and seed."""

from collections.abc import Mapping, Sequence

import numpy as np

from stem_torchrec.analysis.runs import Run, task_columns
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place
from stem_torchrec.training.evaluation import Joined

MODEL = "single_task"


def check_single(runs: Sequence[Run], tasks: Sequence[str]) -> None:
    """Refuse ``--single`` runs that are not single-task, or that leave a task without one.

    A run counts if its model is ``single_task`` (networks that share nothing) or if it has one
    task only.

    Raises:
        UserError: such a run, a task that none has, or two runs of a task with the same seed.
    """
    for run in runs:
        if run.config.model.name != MODEL and len(run.tasks) != 1:
            raise UserError(
                f"--single: {run.path} is of model {run.config.model.name!r} with tasks "
                f"{', '.join(run.tasks)}; allowed: model {MODEL!r}, or one task"
            )
    for task in tasks:
        seeds: dict[int, Run] = {}
        for run in runs:
            if task in run.tasks and seeds.setdefault(run.seed, run) is not run:
                raise UserError(
                    f"--single: {seeds[run.seed].path} and {run.path} both have task {task!r} "
                    f"and run.seed {run.seed}"
                )
        if not seeds:
            found = ", ".join(dict.fromkeys(task for run in runs for task in run.tasks))
            raise UserError(f"--single: no run has task {task!r}; their tasks are {found}")


def single_of(runs: Sequence[Run], tasks: Sequence[str], seed: int) -> tuple[Run, ...]:
    """Per task the run to compare a run of this seed with.

    The only run of a task serves every seed; of several, the one of the same seed.

    Raises:
        UserError: several runs have the task, none of them this seed.
    """
    return tuple(
        _for_task([run for run in runs if task in run.tasks], task, seed) for task in tasks
    )


def single_predictions(
    runs: Sequence[Run], predictions: Mapping[Place, Joined], tasks: Sequence[str]
) -> Joined:
    """Predictions of each task by its own run of ``runs``, a column per task."""
    columns = [
        task_columns(predictions[run.path], run.tasks, [task])
        for run, task in zip(runs, tasks, strict=True)
    ]
    return Joined(
        np.hstack([column.logits for column in columns]),
        np.hstack([column.labels for column in columns]),
        np.hstack([column.weights for column in columns]),
        None,
    )


def _for_task(runs: Sequence[Run], task: str, seed: int) -> Run:
    candidates = [run for run in runs if task in run.tasks]
    if len(candidates) == 1:
        return candidates[0]
    for run in candidates:
        if run.seed == seed:
            return run
    found = ", ".join(str(run.seed) for run in candidates)
    raise UserError(
        f"--single: no run of task {task!r} has run.seed {seed}, as one of --runs has; "
        f"found {found}; give one run for all seeds, or one per seed"
    )
