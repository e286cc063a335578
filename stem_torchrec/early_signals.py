"""Which signals stop a command, and what they do before it trains. Nothing heavy is imported."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NOTE = "stopped by a signal before the first step: there was nothing to save"


def stop_signals() -> tuple[signal.Signals, ...]:
    """Those of ``SIGNALS`` that this process was not told to ignore when it was started.

    ``nohup`` has SIGHUP ignored, a shell without job control SIGINT for what it starts with ``&``;
    whoever starts a job so wants it to outlive them.
    """
    return tuple(name for name in SIGNALS if signal.getsignal(name) is not signal.SIG_IGN)


class _Signalled(SystemExit):
    """Ends the process with exit code 0 wherever it comes out."""


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
    except _Signalled:
        print(NOTE, file=sys.stderr)
        raise
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Signalled(0)
