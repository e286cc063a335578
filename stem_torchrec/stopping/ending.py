"""End this process from any thread, with one line that says why."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

from stem_torchrec.errors import WorkerError


def end_process(message: str, code: int, *, said: bool = False) -> NoReturn:
    """Leave at once: the main thread may never return.

    A rank of torch's launcher leaves the message to it, others print it, unless it is ``said``.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        with suppress(Exception):  # a full disk for temporary files does not keep it from ending
            get_error_handler().record_exception(WorkerError(message))
    elif not said:
        with suppress(Exception):
            print(f"error: {message}", file=sys.__stderr__, flush=True)
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code)
