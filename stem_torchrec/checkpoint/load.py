"""Reading a checkpoint of any number of ranks and any plan into a model."""

from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.api import CheckpointException
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.checkpoint.failures import message_of
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError, UserError
from stem_torchrec.optim import Optimizers
from stem_torchrec.place import Place

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
    "files",
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


def load(
    folder: Place,
    model: DistributedModelParallel,
    optimizers: Optimizers | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Read a checkpoint of any number of ranks and any plan into this one. Collective.

    Without ``optimizers`` only the model and the step are read, as evaluation needs them.

    Returns:
        The position that was saved with it.

    Raises:
        UserError, CheckpointError: as ``read``.
    """
    names = POSITION if optimizers is not None else ("step",)
    position: dict[str, Any] = dict.fromkeys(names, 0)
    if optimizers is not None:
        optimizers.make_state()
    state = state_of(model, optimizers, position)
    read(folder, state, ranks)
    model.load_state_dict(state["model"])
    if optimizers is not None:
        optimizers.load_state_dict(state["optimizers"])
    return state["position"]


def read(folder: Place, state: dict[str, Any], ranks: Ranks) -> None:
    """Read what ``state`` names into its tensors, and put the rest in their place. Collective.

    Raises:
        UserError: the store does not answer.
        CheckpointError: a rank could not read its part otherwise.
    """
    # Flattening drops tables without a shard on this rank, and the planner then takes the
    # checkpoint for one of an older format.
    planner = DefaultLoadPlanner(flatten_sharded_tensors=False)
    group = ranks.host_group
    try:
        dcp.load(state, storage_reader=Reader(folder), planner=planner, process_group=group)
    except CheckpointException as failure:
        for error, _ in failure.failures.values():
            if isinstance(error, UserError):
                raise error from None
        raise CheckpointError(f"{folder}: {message_of(failure)}") from failure
