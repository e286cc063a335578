"""Which signals stop a command, and what they do before it trains. Nothing heavy is imported."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_S = 2.0
"""Signals within this time are one: a terminal and a launcher both pass on Ctrl-C."""

NOTE = "stopped by a signal before the first step: there was nothing to save"
STDERR = 2
SHOW_CURSOR = "\r\x1b[?25h"
"""A progress line hides it."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those of ``SIGNALS`` that this process was not told to ignore when it was started.

    ``nohup`` has SIGHUP ignored, a shell without job control SIGINT for what it starts with ``&``;
    whoever starts a job so wants it to outlive them.
    """
    return tuple(name for name in SIGNALS if signal.getsignal(name) is not signal.SIG_IGN)


@contextmanager
def leaving_at_signals() -> Iterator[None]:
    """A stop signal ends this process with exit code 0: there is nothing to save.

    Others may handle them in between. The ranks of a launcher are left as they are: it tells by
    their exit codes what has ended them.
    """
    if "RANK" in os.environ or current_thread() is not main_thread():
        yield
        return
    handlers = {name: signal.signal(name, _leave) for name in stop_signals()}
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
