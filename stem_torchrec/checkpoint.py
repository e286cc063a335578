"""Checkpoints of a run: tables, dense weights, both optimizers and the position."""

import shutil
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.optim import Optimizers

FOLDER = "checkpoints"
POSITION = (
    "step",
    "samples",
    "skipped",
    "epoch",
    "step_in_epoch",
    "world_size",
    "batch_size",
    "intervals",
    "order",
)
"""What a position holds: numbers, lists and text, the same on every rank."""


def state_of(
    model: DistributedModelParallel, optimizers: Optimizers | None, position: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint holds; loading writes into the same tensors."""
    state: dict[str, Any] = {"model": model.state_dict(), "position": position}
    if optimizers is not None:
        state["optimizers"] = optimizers.state_dict()
    return state


def save(folder: Path, step: int, state: dict[str, Any], ranks: Ranks, *, keep: int) -> None:
    """Write ``folder/step_N``; it appears under its name only when complete. Collective.

    The newest ``keep`` checkpoints stay.
    """
    final = folder / f"step_{step}"
    aside = folder / f"step_{step}.partial"
    ranks.on_first(lambda: shutil.rmtree(aside, ignore_errors=True))
    dcp.save(state, checkpoint_id=aside, process_group=ranks.host_group)
    ranks.on_first(lambda: _publish(aside, final, keep))


def _publish(aside: Path, final: Path, keep: int) -> None:
    if final.exists():
        shutil.rmtree(final)
    aside.rename(final)
    for step in saved_steps(final.parent)[:-keep]:
        shutil.rmtree(final.parent / f"step_{step}")


def load(
    folder: Path,
    model: DistributedModelParallel,
    optimizers: Optimizers | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Read a checkpoint of any number of ranks and any plan into this one. Collective.

    Without ``optimizers`` only the model and the step are read, as evaluation needs them.

    Returns:
        The position that was saved with it.
    """
    names = POSITION if optimizers is not None else ("step",)
    position: dict[str, Any] = dict.fromkeys(names, 0)
    if optimizers is not None:
        optimizers.make_state()
    state = state_of(model, optimizers, position)
    # Flattening drops tables without a shard on this rank, and the planner then takes the
    # checkpoint for one of an older format.
    planner = DefaultLoadPlanner(flatten_sharded_tensors=False)
    dcp.load(state, checkpoint_id=folder, planner=planner, process_group=ranks.host_group)
    model.load_state_dict(state["model"])
    if optimizers is not None:
        optimizers.load_state_dict(state["optimizers"])
    return state["position"]


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, oldest first."""
    names = (path.name for path in folder.glob("step_*"))
    return sorted(int(name[5:]) for name in names if name[5:].isdigit())


def newest(run_dir: Path) -> Path:
    """The newest complete checkpoint.

    Raises:
        UserError: the run has none.
    """
    steps = saved_steps(run_dir / FOLDER)
    if not steps:
        raise UserError(f"{run_dir}: no checkpoint under {run_dir / FOLDER}")
    return run_dir / FOLDER / f"step_{steps[-1]}"
