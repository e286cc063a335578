"""Whether all nodes see one and the same folder."""

import socket
import time

import torch.distributed as dist

from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage.lock.folder_lock import holder_of
from stem_torchrec.storage.lock.holder import Holder
from stem_torchrec.storage.place import Place, in_store

SEEN_S = 30.0
"""Network disks may show a new file this much later on another node."""

_POLL_S = 0.5


def check_shared(name: str, folder: Place, ranks: Ranks) -> None:
    """Refuse a folder whose lock, which rank 0 holds, is not there on every node. Collective.

    Raises:
        UserError: names the nodes that have another folder there, or none.
    """
    one_node = ranks.local_world_size == ranks.world_size
    if one_node or in_store(folder):
        return
    holder = ranks.on_first(lambda: holder_of(folder))
    own = None if _is_seen(folder, holder) else socket.gethostname()
    missing: list[str | None] = [None] * ranks.world_size
    dist.all_gather_object(missing, own, group=ranks.host_group)
    if any(missing):
        lost = ", ".join(f"rank {rank} on {host}" for rank, host in enumerate(missing) if host)
        raise UserError(
            f"{name}: {str(folder)!r} is not the same folder on all nodes: {lost} does not see "
            "what rank 0 has written there; choose one on a disk that all share, or in a store"
        )


def _is_seen(folder: Place, holder: Holder | None) -> bool:
    end = time.monotonic() + SEEN_S
    while holder_of(folder) != holder:
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True
