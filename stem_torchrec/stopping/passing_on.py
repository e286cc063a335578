"""A launcher's part in stopping: it passes signals on to its workers and waits for them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from types import FrameType

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from stem_torchrec.stopping.signals import SAME_S, SIGNALS, stop_signals

_FROM_TERMINALS = {signal.SIGINT, signal.SIGHUP}


class PassedOn:
    """A stop signal goes to the workers as SIGTERM; a second one kills them.

    Attributes:
        signal: the first that came, or None.
        at_first: called when it comes, before the workers get it.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self.at_first: list[Callable[[], None]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), now
            for call in self.at_first:
                call()
            _send(signal.SIGTERM)
        elif now - self._since > SAME_S:
            _send(signal.SIGKILL)

    def workers_have_started(self) -> None:
        """Pass on what came when there were no workers to pass it on to."""
        if self.signal is not None:
            _send(signal.SIGTERM)

    def before_the_first_step(self, failure: ChildFailedError) -> bool:
        """Whether a worker has failed only because the signal came while it started."""
        codes = {-name for name in SIGNALS}
        return self.signal is not None and any(
            worker.exitcode in codes for worker in failure.failures.values()
        )


@contextmanager
def passing_on_signals() -> Iterator[PassedOn]:
    """Around a launch, in the main thread, whose launcher leaves these signals alone."""
    passed_on, ended = PassedOn(), Event()
    # Workers inherit the mask: what a terminal sends to them too would end those that have not
    # begun to train. Python needs one thread that gets the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINALS)
    thread = Thread(target=_receive, args=(ended,), daemon=True)
    thread.start()
    handlers = {name: signal.signal(name, passed_on) for name in stop_signals()}
    try:
        yield passed_on
    finally:
        for name, handler in handlers.items():
            signal.signal(name, handler)
        ended.set()
        thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINALS)


def _receive(ended: Event) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINALS)
    ended.wait()


def _send(name: signal.Signals) -> None:
    for process in _children():
        with suppress(ProcessLookupError):
            os.kill(process, name)


def _children() -> list[int]:
    """Child processes of every thread of this one, but for Python's own helper."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += [int(number) for number in (thread / "children").read_text().split()]
    tracker = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    return [process for process in found if process != tracker]
