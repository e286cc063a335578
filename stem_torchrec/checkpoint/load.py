"""The parts of a run that a checkpoint holds, and reading them on any number of ranks."""

import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any, Protocol

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import ReadItem

from stem_torchrec.checkpoint.failures import message_of
from stem_torchrec.checkpoint.files import Reader
from stem_torchrec.checkpoint.index import Index, read_index
from stem_torchrec.checkpoint.manifest import read_manifest
from stem_torchrec.checkpoint.plain import NotPlain, load_plain, reason
from stem_torchrec.config import EmbeddingConfig
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError, UserError, shown
from stem_torchrec.storage.place import Place

_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """A part of a run that a checkpoint holds.

    ``state_dict`` gives tensors, which loading writes into, and plain values: numbers, text, lists.
    ``load_state_dict`` raises ValueError, ``NAME: reason``, for a plain value that cannot be.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


Parts = Mapping[str, Stateful]
"""By the name under which a checkpoint holds them."""


def state_of(parts: Parts) -> dict[str, Any]:
    """What a checkpoint of some parts holds; loading writes into the same tensors."""
    return {name: part.state_dict() for name, part in parts.items()}


def load(folder: Place, parts: Parts, ranks: Ranks) -> None:
    """Read parts of a checkpoint of any number of ranks and any plan into these. Collective.

    Other parts that it holds are not read. A plain value that it does not hold, since an earlier
    format had none, is missing in what a part is given.

    Raises:
        UserError, CheckpointError: as ``read``; a part refuses its state.
    """
    index = ranks.on_first(lambda: read_index(folder))
    state = {name: _held(name, part.state_dict(), index) for name, part in parts.items()}
    if ranks.is_first:
        held = {f"model.{name}": value for name, value in state.get("model", {}).items()}
        say_conversion(folder, held, index)
    read(folder, index, state, ranks)
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except ValueError as error:
            raise UserError(f"{folder}: {name}.{error}") from None


def tell_of_layout(folder: Place, config: EmbeddingConfig, ranks: Ranks) -> None:
    """Warn on rank 0 if the tables lay otherwise and that changes an optimizer's state."""
    if not ranks.is_first or config.optimizer != "rowwise_adagrad":
        return
    saved = read_manifest(folder).about.get("layout", "separate")
    if saved != config.layout:
        _log.warning(
            "saved with embedding.layout %s, going on with %s: %s; all else is as it was",
            saved,
            config.layout,
            "row-wise Adagrad's accumulator of a row is the mean of its owners'"
            if config.layout == "fused"
            else "row-wise Adagrad's accumulator of a row goes to each of its owners",
        )


def _held(name: str, state: dict[str, Any], index: Index) -> dict[str, Any]:
    plain = (int, float, str, list, type(None))
    return {
        key: value
        for key, value in state.items()
        if not isinstance(value, plain) or f"{name}.{key}" in index.values
    }


def say_conversion(folder: Place, targets: Mapping[str, Any], index: Index) -> None:
    """One line where tensors have another precision there: reading copies values, rounded.

    Args:
        targets: by the names of ``index``; what is no tensor, or is not there, is passed over.
    """
    types = {name: str(value.dtype) for name, value in targets.items() if hasattr(value, "dtype")}
    pairs = {
        (index.tensors[name].dtype, dtype.removeprefix("torch."))
        for name, dtype in types.items()
        if name in index.tensors
    }
    for there, here in sorted(pairs):
        if there != here:
            _log.warning("%s: tables of %s are converted to %s", folder, there, here)


class SavedStep:
    """The number of finished steps in a checkpoint's position; all that evaluation needs of it.

    Attributes:
        step: 0 before it is loaded.
    """

    step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Any) -> None:
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"step: expected a number of steps, found {shown(state['step'])}")
        self.step = state["step"]


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
