"""Reading a checkpoint of any number of ranks and any plan into a model."""

import io
import pickle
from typing import Annotated, Any

import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import ReadItem
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.checkpoint.failures import message_of
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.checkpoint.index import Index, read_index
from stem_torchrec.checkpoint.plain import NotPlain, load_plain, reason
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError, UserError
from stem_torchrec.optim import Optimizers
from stem_torchrec.place import Place


class _SavedPosition(BaseModel):
    """What a position holds, the same on every rank. Format 1 had no ``files``."""

    model_config = ConfigDict(strict=True)

    step: int = Field(ge=0)
    samples: int = Field(ge=0)
    skipped: int = Field(ge=0)
    epoch: int = Field(ge=0)
    step_in_epoch: int = Field(ge=0)
    world_size: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    intervals: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    order: str
    files: str | None = None


POSITION = tuple(_SavedPosition.model_fields)
"""Names of what a position holds: numbers, lists and text."""


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
    index = ranks.on_first(lambda: read_index(folder))
    names = [name for name in POSITION if f"position.{name}" in index.values]
    position: dict[str, Any] = dict.fromkeys(names if optimizers is not None else ["step"], 0)
    if optimizers is not None:
        optimizers.make_state()
    state = state_of(model, optimizers, position)
    read(folder, index, state, ranks)
    _check_position(folder, state["position"], whole=optimizers is not None)
    model.load_state_dict(state["model"])
    if optimizers is not None:
        optimizers.load_state_dict(state["optimizers"])
    return state["position"]


def _check_position(folder: Place, position: dict[str, Any], *, whole: bool) -> None:
    try:
        _SavedPosition.model_validate(position)
    except ValidationError as error:
        wrong = {str(e["loc"][0]): e["msg"] for e in error.errors()}
        for name in wrong.keys() & (set(POSITION) if whole else {"step"}):
            raise UserError(f"{folder}: position.{name}: {wrong[name]}") from None


def read(folder: Place, index: Index, state: dict[str, Any], ranks: Ranks) -> None:
    """Read what ``state`` names into its tensors, and put the rest in their place. Collective.

    Raises:
        UserError: the store does not answer, or the checkpoint holds more than tensors, numbers,
            text and lists.
        CheckpointError: a rank could not read its part otherwise.
    """
    # Flattening drops tables without a shard on this rank, and the planner then takes the
    # checkpoint for one of an older format.
    planner = _PlainPlanner(flatten_sharded_tensors=False)
    reader, group = Reader(folder, index), ranks.host_group
    try:
        dcp.load(state, storage_reader=reader, planner=planner, process_group=group)
    except CheckpointException as failure:
        for error, _ in failure.failures.values():
            if isinstance(error, UserError) or not isinstance(error, Exception):
                raise error from None  # the latter is Ctrl-C, which is nobody's failure
            if isinstance(error, pickle.UnpicklingError):
                raise UserError(f"{folder}: {reason(error)}") from None
        raise CheckpointError(f"{folder}: {message_of(failure)}") from failure


class _PlainPlanner(DefaultLoadPlanner):
    """DCP's own unpickles whatever it finds where the state has no tensor."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        try:
            content = load_plain(value)
        except NotPlain as error:
            raise UserError(f"the checkpoint's {name}: {error}") from None
        set_element(self.original_state_dict, self.mappings[name], content)
