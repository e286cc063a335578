"""What a failed rank leaves to its launcher."""

import contextlib
import json
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from stem_torchrec.errors import UserError, WorkerError


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
    if kind == UserError.__name__:
        return UserError(text)
    ended = f"exit code {failure.exitcode}"
    return WorkerError(f"{trace}\nrank {rank} failed ({ended}): {message}".lstrip())
