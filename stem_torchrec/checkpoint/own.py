"""What each rank saves for itself beside the tables and weights that all have in common."""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from stem_torchrec.checkpoint.manifest import FORMAT, read_manifest
from stem_torchrec.checkpoint.plain import NotPlain, load_plain
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

_log = logging.getLogger(__name__)


class OwnPart(Protocol):
    """A part of a run that each rank has for itself."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...

    def merge(self, states: Sequence[Any]) -> None:
        """Go on after another number of ranks, with the states of all of them."""
        ...


OwnParts = Mapping[str, OwnPart]


def own_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def own_state(parts: OwnParts) -> bytes:
    """What this rank has for itself, as a file."""
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()}, buffer)
    return buffer.getvalue()


def load_own(folder: Place, parts: OwnParts, ranks: Ranks) -> None:
    """Take up what ``own_state`` has saved. Not collective.

    With another number of ranks each part makes one of all their states.

    Raises:
        UserError: an earlier version has saved something else, or it is not what a save writes.
    """
    about = read_manifest(folder).about
    try:
        _load(folder, int(about["world_size"]), parts, ranks)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{folder}: the files rank_*.pt are not those of format 1 to {FORMAT}, which --resume "
            f"reads ({type(error).__name__}: {error}); an earlier version may have written them: "
            "evaluate and --init-from do not need them"
        ) from None


def _load(folder: Place, saved_ranks: int, parts: OwnParts, ranks: Ranks) -> None:
    if saved_ranks == ranks.world_size:
        state = _read(folder, ranks.rank)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return
    states = [_read(folder, rank) for rank in range(saved_ranks)]
    for name, part in parts.items():
        part.merge([state[name] for state in states])
    if ranks.is_first:
        _log.warning(
            "saved on %d ranks, going on with %d: windowed metrics start anew, and dropout "
            "draws other numbers",
            saved_ranks,
            ranks.world_size,
        )


def _read(folder: Place, rank: int) -> dict[str, Any]:
    file = folder / own_file(rank)
    try:
        state: dict[str, Any] = load_plain(io.BytesIO(file.read_bytes()))
    except NotPlain as error:
        raise UserError(f"{file}: {error}") from None
    return state
