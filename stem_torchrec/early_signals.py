"""What SIGTERM and SIGINT do to a training command before it trains. Nothing heavy is imported."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2
SHOW_CURSOR = "\r\x1b[?25h"
"""A progress line hides it."""

NOTE = "stopped by a signal before the first step: there was nothing to save"


@contextmanager
def leaving_at_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end this process with exit code 0: there is nothing to save.

    Others may handle them in between. The ranks of a launcher are left as they are: it tells by
    their exit codes what has ended them.
    """
    if "RANK" in os.environ or current_thread() is not main_thread():
        yield
        return
    handlers = {name: signal.signal(name, _leave) for name in SIGNALS}
    try:
        yield
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """End here: an exception could come out of any line of any library, and be taken for another.

    Everything that a run leaves behind stands being cut off, as by a kill.
    """
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        shown = SHOW_CURSOR if os.isatty(STDERR) else ""
        os.write(STDERR, f"{shown}{NOTE}\n".encode())
    os._exit(0)
