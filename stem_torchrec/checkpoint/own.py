"""What each rank saves for itself beside the tables and weights that all have in common."""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from stem_torchrec.checkpoint.manifest import FORMAT, read_manifest
from stem_torchrec.checkpoint.plain import NotPlain, load_plain
from stem_torchrec.checkpoint.rng import rng_state, set_rng_state
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.place import Place

_log = logging.getLogger(__name__)


class Windows(Protocol):
    """The metrics of a rank's training stream."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None: ...


class Balance(Protocol):
    """What the last balancing has left for the records; the same on every rank."""

    def last_state(self) -> dict[str, Any] | None: ...

    def set_last_state(self, state: Mapping[str, Any] | None) -> None: ...


def own_file(rank: int) -> str:
    return f"rank_{rank}.pt"


def own_state(windows: Windows, balance: Balance | None, ranks: Ranks) -> bytes:
    """Random number generators, metric windows and balancing figures of this rank."""
    state = {
        "rng": rng_state(ranks.device),
        "windows": windows.state_dict(),
        "balance": balance.last_state() if balance is not None else None,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load_own(folder: Place, windows: Windows, balance: Balance | None, ranks: Ranks) -> None:
    """Take up what ``own_state`` has saved. Not collective.

    With another number of ranks the metrics' sums are joined, their windows start anew, and random
    numbers go on with the run's seed.

    Raises:
        UserError: an earlier version has saved something else, or it is not what a save writes.
    """
    saved_ranks = read_manifest(folder).about["world_size"]
    try:
        _load(folder, saved_ranks, windows, balance, ranks)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{folder}: the files rank_*.pt are not those of format 1 to {FORMAT}, which --resume "
            f"reads ({type(error).__name__}: {error}); an earlier version may have written them: "
            "evaluate and --init-from do not need them"
        ) from None


def _load(
    folder: Place, saved_ranks: int, windows: Windows, balance: Balance | None, ranks: Ranks
) -> None:
    if saved_ranks == ranks.world_size:
        state = _read(folder, ranks.rank)
        windows.load_state_dict(state["windows"])
        set_rng_state(state["rng"], ranks.device)
    else:
        states = [_read(folder, rank) for rank in range(saved_ranks)]
        windows.merge([state["windows"] for state in states])
        state = states[0]
        if ranks.is_first:
            _log.warning(
                "saved on %d ranks, going on with %d: windowed metrics start anew, and dropout "
                "draws other numbers",
                saved_ranks,
                ranks.world_size,
            )
    if balance is not None:
        balance.set_last_state(state["balance"])


def _read(folder: Place, rank: int) -> dict[str, Any]:
    file = folder / own_file(rank)
    try:
        state: dict[str, Any] = load_plain(io.BytesIO(file.read_bytes()))
    except NotPlain as error:
        raise UserError(f"{file}: {error}") from None
    return state
