"""Which checkpoints a run has, and which of them can be trusted."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from stem_torchrec.checkpoint.manifest import (
    MANIFEST,
    Damaged,
    Manifest,
    check_files,
    check_sizes,
    read_manifest,
    write_manifest,
)
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage import publishing
from stem_torchrec.storage.place import Place
from stem_torchrec.storage.publishing import PARTIAL, REPLACED

FOLDER = "checkpoints"

_log = logging.getLogger(__name__)


def folder_of(folder: Place, step: int) -> Place:
    """Where the checkpoint of a step is published."""
    return folder / f"step_{step}"


def publish(aside: Place, final: Place, manifest: Manifest) -> None:
    """Make what was written aside the checkpoint ``final``, in place of the one there, if any.

    Raises:
        Damaged: a file is missing or not of its size.
    """
    check_sizes(aside, manifest.files)
    write_manifest(aside, manifest)
    publishing.publish(aside, final)


def add_to_manifest(folder: Place, step: int, about: Mapping[str, Any]) -> None:
    """Let the checkpoint of a step, if it is there, say more of itself.

    Raises:
        OSError, UserError: its manifest cannot be written, here or in a store.
    """
    for number, path, manifest in complete(folder):
        if number == step:
            write_manifest(path, manifest._replace(about={**manifest.about, **about}))
            return


def is_leftover(path: Place) -> bool:
    """Whether a folder beside the checkpoints is what a save or removal that was cut off has left.

    Raises:
        UserError: the store does not say what is in it.
    """
    named = re.fullmatch(rf"step_\d+({re.escape(PARTIAL)}|{re.escape(REPLACED)})?", path.name)
    return named is not None and publishing.is_leftover(path, MANIFEST)


def discard(path: Place) -> None:
    """Remove a checkpoint or a leftover, if it is there; what is cut off leaves a leftover.

    Raises:
        OSError, UserError: it cannot be removed, here or in a store.
    """
    publishing.discard(path, MANIFEST)


def saved_steps(folder: Place) -> list[int]:
    """Steps of the complete checkpoints in a folder, oldest first; contents are not checked."""
    return sorted({step for step, _, _ in complete(folder)})


def complete(folder: Place) -> Iterator[tuple[int, Place, Manifest]]:
    """Step, folder and manifest of the checkpoints whose files are there, newest first."""
    for step, path in candidates(folder):
        try:
            yield step, path, read_manifest(path)
        except Damaged:
            continue


def epoch_of(path: Place) -> int | None:
    """The epoch that a checkpoint's last step belongs to; None where it does not say so."""
    epoch = read_manifest(path).about.get("epoch")
    return epoch if isinstance(epoch, int) else None


def has_published(run_dir: Place) -> bool:
    """Whether a save was ever completed there; what is left of it may be damaged."""
    found = candidates(run_dir / FOLDER)
    return any(isinstance(path, Path) or not is_leftover(path) for _, path in found)


def newest(run_dir: Place) -> Place:
    """The newest complete checkpoint; contents are not checked.

    Raises:
        UserError: the run has none.
    """
    for _, path, _ in complete(run_dir / FOLDER):
        return path
    raise _none(run_dir, [])


def newest_about(run_dir: Place) -> Mapping[str, Any]:
    """What the manifest of the newest complete checkpoint says of the run.

    Raises:
        UserError: the run has none, or its manifest names no tasks: no run has written it.
    """
    for _, path, manifest in complete(run_dir / FOLDER):
        tasks = manifest.about.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
            raise UserError(f"{path / MANIFEST}: it names no tasks; a run's checkpoint does")
        return manifest.about
    raise _none(run_dir, [])


def newest_valid(run_dir: Place, ranks: Ranks) -> Place:
    """The newest checkpoint that is as it was written, every byte. Collective.

    The ranks share the reading. Newer ones that are not valid are named in the log.

    Raises:
        UserError: no checkpoint is valid.
    """
    passed_over: list[str] = []
    for _, path in ranks.on_first(lambda: candidates(run_dir / FOLDER)):
        problem = problem_of(path, ranks)
        if problem is None:
            if ranks.is_first:
                for line in passed_over:
                    _log.warning("checkpoint passed over: %s", line)
            return path
        passed_over.append(f"{path.name}: {problem}")
    raise _none(run_dir, passed_over)


def problem_of(path: Place, ranks: Ranks) -> str | None:
    """What is wrong with a checkpoint, the same on every rank. Collective."""
    own: str | None = None
    try:
        files = read_manifest(path).files
        check_files(path, files[ranks.rank :: ranks.world_size])
    except Damaged as damage:
        own = str(damage)
    if ranks.world_size == 1:
        return own
    found: list[str | None] = [None] * ranks.world_size
    dist.all_gather_object(found, own, group=ranks.host_group)
    return next((problem for problem in found if problem is not None), None)


def candidates(folder: Place) -> list[tuple[int, Place]]:
    """Folders with a checkpoint's name, newest first."""
    found: list[tuple[int, Place]] = []
    if not folder.is_dir():
        return found
    for path in folder.glob("step_*"):
        # A checkpoint saved again: if the run ended in between, the old one stands aside.
        number = path.name.removeprefix("step_").removesuffix(REPLACED)
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found, key=lambda entry: (-entry[0], entry[1].name))


def _none(run_dir: Place, passed_over: Sequence[str]) -> UserError:
    folder = run_dir / FOLDER
    if not passed_over:
        return UserError(f"{run_dir}: no checkpoint under {folder}")
    return UserError(f"{run_dir}: no valid checkpoint under {folder}: " + "; ".join(passed_over))
