"""What a failed rank leaves to its launcher."""

import contextlib
import json
from typing import Any

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
