"""What a failed rank leaves to its launcher."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stem_torchrec.errors import (
    CheckpointError,
    EnvironmentFailure,
    SplitRefused,
    StoreUnreachable,
    UserError,
    WorkerError,
)

_TOLD = (UserError, StoreUnreachable, SplitRefused, EnvironmentFailure, CheckpointError)


def killed_by_signals(context: PContext) -> dict[int, int]:
    """Local rank -> negative signal, of the launcher's processes that one has ended."""
    killed = {}
    for rank, pid in context.pids().items():
        with contextlib.suppress(ChildProcessError):  # it has been looked at before
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None and ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                killed[rank] = -ended.si_status
    return killed


def all_failures(
    context: PContext, found: Mapping[int, ProcessFailure], killed: Mapping[int, int]
) -> dict[int, ProcessFailure]:
    """Every local rank's failure, in the order in which they failed; ``timestamp`` says it, too.

    Torch elastic counts seconds, and of its own workers it reports the first that it finds, which
    may only have lost the one that failed. An error file says when its rank has failed; a rank that
    was killed leaves none, and whoever has lost it failed after it.

    Args:
        found: what torch elastic reports.
        killed: as ``killed_by_signals`` found them before torch elastic ended the others.
    """
    failures, pids = dict(found), context.pids()
    written = {rank: Path(file) for rank, file in context.error_files.items()}
    times = {rank: file.stat().st_mtime for rank, file in written.items() if file.is_file()}
    for rank in (times.keys() | killed.keys()) - failures.keys():
        code = killed.get(rank, 1)
        with contextlib.suppress(ValueError, KeyError):  # a rank that was ended while it wrote
            failures[rank] = ProcessFailure(rank, pids[rank], code, str(written[rank]))
    earliest = min(times.values(), default=0.0)
    for rank, failure in failures.items():
        has_ended_first = rank in killed and rank not in times
        time = earliest if has_ended_first else times.get(rank, failure.timestamp)
        failure.timestamp = time  # type: ignore[assignment]
    return dict(sorted(failures.items(), key=lambda item: (item[1].timestamp, item[0] in times)))


def error_of(rank: int, failure: ProcessFailure) -> Exception:
    """The failed rank's error, from the error file that torch elastic keeps."""
    message: Any = failure.message
    trace = ""
    with contextlib.suppress(ValueError):
        message = json.loads(failure.message) if isinstance(message, str) else message
    if isinstance(message, dict):
        trace = message.get("extraInfo", {}).get("py_callstack", "")
        message = message.get("message", "")
    kind, _, text = str(message).partition(": ")
    for known in _TOLD:
        if kind == known.__name__:
            return known(text)
    ended = f"exit code {failure.exitcode}"
    return WorkerError(f"{trace}\nrank {rank} failed ({ended}): {message}".lstrip())


def comes_again(error: Exception) -> bool:
    """Whether workers that are started again would only make the same error."""
    return isinstance(error, UserError) and not isinstance(error, StoreUnreachable)
