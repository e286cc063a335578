"""Which of a run's checkpoints is meant: the last, the best, or that of a step."""

from collections.abc import Mapping
from typing import Literal, NoReturn, TypeAlias

from stem_torchrec.checkpoint.folders import (
    FOLDER,
    candidates,
    complete,
    newest_valid,
    problem_of,
)
from stem_torchrec.checkpoint.keep import best_of
from stem_torchrec.checkpoint.manifest import Manifest
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError, shown
from stem_torchrec.storage.place import Place

Choice: TypeAlias = Literal["last", "best"] | int
"""``last``, ``best`` by the metric of ``checkpoint.keep_best``, or a step."""


def chosen_step(run_dir: Place, choice: Choice) -> int:
    """The step of the checkpoint that is meant; contents are not checked. Not collective.

    The best is by the metric that the newest checkpoint names, the later one of two that are equal.

    Raises:
        UserError: there is none such; says which there are.
    """
    found = {step: manifest for step, _, manifest in complete(run_dir / FOLDER)}
    if not found:
        raise UserError(f"{run_dir}: no checkpoint under {run_dir / FOLDER}")
    if choice == "last":
        return max(found)
    if choice == "best":
        best = best_of(found, _metric(found))
        if best is None:
            _refuse(run_dir, "best: checkpoint.keep_best was not set, so none says how good it is")
        return best
    if isinstance(choice, bool) or not isinstance(choice, int):
        _refuse(run_dir, f"{shown(choice)} is not last, best or a step")
    if choice not in found:
        _refuse(run_dir, f"{choice}: none of this step is whole")
    return choice


def chosen_valid(run_dir: Place, choice: Choice, ranks: Ranks) -> Place:
    """The folder of the checkpoint that is meant, as it was written, every byte. Collective.

    Of ``last`` the newest that is valid is taken, and newer ones are named in the log. No other
    takes the place of ``best`` or of a step.

    Raises:
        UserError: there is none such, or it is damaged; says which there are.
    """
    if choice == "last":
        return newest_valid(run_dir, ranks)
    step = ranks.on_first(lambda: chosen_step(run_dir, choice))
    problems = []
    for number, path in ranks.on_first(lambda: candidates(run_dir / FOLDER)):
        if number != step:
            continue
        problem = problem_of(path, ranks)
        if problem is None:
            return path
        problems.append(f"{path.name}: {problem}")
    raise ranks.on_first(lambda: _refusal(run_dir, "; ".join(problems)))


def _metric(found: Mapping[int, Manifest]) -> str | None:
    """What ``checkpoint.keep_best`` was when the newest checkpoint was written."""
    metric = found[max(found)].about.get("metric")
    return metric["name"] if metric else None


def _refuse(run_dir: Place, reason: str) -> NoReturn:
    raise _refusal(run_dir, reason)


def _refusal(run_dir: Place, reason: str) -> UserError:
    found = {step: manifest for step, _, manifest in complete(run_dir / FOLDER)}
    best = best_of(found, _metric(found)) if found else None
    names = {max(found, default=None): "last"}
    names[best] = f"{names[best]}, best" if best in names else "best"
    there = [f"{step} ({names[step]})" if step in names else str(step) for step in sorted(found)]
    return UserError(
        f"{run_dir / FOLDER}: checkpoint {reason}; there are those of step {', '.join(there)}"
    )
