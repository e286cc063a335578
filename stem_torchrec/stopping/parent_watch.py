"""A process ends when the one that it works for has ended, whatever has ended that one.

A launcher that is killed (SIGKILL, by the system when memory is short, say) can end nobody. Its
ranks would go on, or wait for it forever, with their memory and their GPU.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

from stem_torchrec.stopping.processes import is_there, process_name

PARENT = "STEM_TORCHREC_PARENT"
"""Environment variable with the ``process_name`` of the process that this one works for."""

POLL_S = 0.5
STDERR = 2

_watched: set[str] = set()


@contextmanager
def ends_its_children() -> Iterator[None]:
    """Processes that this one starts in the block end with it."""
    before = os.environ.get(PARENT)
    os.environ[PARENT] = process_name(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(PARENT)
        if before is not None:
            os.environ[PARENT] = before


def end_with_parent() -> None:
    """From now on this process ends with the one that it works for, if it works for one.

    That is the launcher that says so, or torchrun. A process that handles SIGTERM gets it, and so
    may save first (in ``run.grace_s``); others end at once, and so do the ranks of a node that
    other nodes can bring back.
    """
    parent = os.environ.get(PARENT)
    if parent is None and "TORCHELASTIC_RUN_ID" in os.environ:
        parent = process_name(os.getppid())
    if parent is None or " " not in parent or parent in _watched:
        return
    _watched.add(parent)
    Thread(target=_watch, args=(parent,), name="stem_torchrec-parent", daemon=True).start()


def _watch(parent: str) -> None:
    while is_there(parent):
        time.sleep(POLL_S)
    stops = _handles_sigterm() and not _goes_on_elsewhere()
    then = "this job is stopped" if stops else "this process ends"
    _say(f"the process that started this one ({parent.split()[0]}) has gone: {then}")
    if stops:
        os.kill(os.getpid(), signal.SIGTERM)
    while stops and _handles_sigterm():  # it sees to its end in time itself
        time.sleep(POLL_S)
    os._exit(1)


def _goes_on_elsewhere() -> bool:
    """Whether the job's other nodes bring it back if this one is lost: a stop would end it all."""
    several = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    return several and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def _handles_sigterm() -> bool:
    return callable(signal.getsignal(signal.SIGTERM))


def _say(message: str) -> None:
    """Each rank for itself: the others may have left before they see it too."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    with suppress(OSError):  # the parent may have been who read it
        os.write(STDERR, f"error: {rank}{message}\n".encode())
