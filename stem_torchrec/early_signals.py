"""What SIGTERM and SIGINT do to a training command before it trains. Nothing heavy is imported."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTE = "stopped by a signal before the first step: there was nothing to save"


class _Signalled(SystemExit):
    """Ends the process with exit code 0 wherever it comes out."""


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
    except _Signalled:
        print(NOTE, file=sys.stderr)
        raise
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Signalled(0)
