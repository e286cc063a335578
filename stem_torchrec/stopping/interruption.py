"""Signals that ask a run to end, and a watch over its steps.

Python runs signal handlers between two instructions of the main thread, so a main thread that
waits in a collective would see neither a signal nor a time limit. A thread of its own does.
"""

import faulthandler
import os
import select
import signal
import tempfile
import time
from contextlib import suppress
from threading import Thread, current_thread, main_thread
from types import FrameType, TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from stem_torchrec.stopping.ending import end_process
from stem_torchrec.stopping.signals import SAME_S, SIGNALS, stop_signals

STDERR = 2
OTHERS_S = 3.0
"""Ranks reach a limit at almost the same time; the first to end is the end of all."""


class Peers(Protocol):
    """This rank and those that it stops with."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def host_group(self) -> dist.ProcessGroup | None:
        """For tensors on the host."""


class Stopped(Exception):
    """All ranks have agreed to stop."""


class Interruption:
    """While it is entered, SIGTERM, SIGINT and SIGHUP do not end the process; they ask for a stop.

    All ranks stop at the same point, where ``agreed`` or ``check`` says so. The process ends at
    once, with an exit code other than 0, where it has not left ``grace_s`` after the signal, at a
    second signal, and where between two ``beat`` more than ``limit_s`` pass: then every rank
    writes the stacks of its threads to stderr.

    Args:
        grace_s: seconds from the signal in which to end.
        limit_s: seconds a step may take; less than of one collective.
    """

    def __init__(self, ranks: Peers, *, grace_s: float, limit_s: float) -> None:
        self._ranks = ranks
        self._grace_s = grace_s
        self._limit_s = limit_s
        self._beat: float | None = None
        self._signalled: tuple[signal.Signals, float] | None = None
        self._vote: tuple[torch.Tensor, dist.Work] | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if current_thread() is main_thread():
            self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._handlers = {name: signal.signal(name, _noted) for name in stop_signals()}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher may have blocked it
        self._thread = Thread(target=self._watch, name="stem_torchrec-interruption", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._handlers.items():
            signal.signal(name, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._old_fd)
        if error is None and self._vote is not None:
            self._vote[1].wait()
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def beat(self) -> None:
        """A step has ended; the next has ``limit_s``."""
        self._beat = time.monotonic()

    def rest(self) -> None:
        """No step is under way, until the next ``beat``."""
        self._beat = None

    def agreed(self) -> bool:
        """Whether all ranks stop here, as they agreed since the last call. Collective.

        One all-reduce of one number on the host, which travels until the next call.
        """
        if self._ranks.world_size == 1:
            return self._signalled is not None
        last, self._vote = self._vote, None
        if last is not None:
            last[1].wait()
            if last[0].item():
                return True
        wish = torch.tensor([int(self._signalled is not None)])
        self._vote = (
            wish,
            dist.all_reduce(wish, dist.ReduceOp.MAX, self._ranks.host_group, async_op=True),
        )
        return False

    def check(self) -> None:
        """Between two steps of something that can be left, such as an evaluation. Collective.

        Raises:
            Stopped: all ranks have agreed to stop.
        """
        self.beat()
        if self.agreed():
            raise Stopped

    def _watch(self) -> None:
        # Not ``select``: that knows descriptors below 1024 only, and many ranks have many sockets.
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        while True:
            if poll.poll(1000 * self._next_look_s()):
                for byte in os.read(self._reader, 64):
                    if byte == 0:
                        return
                    if byte in SIGNALS:
                        self._note(signal.Signals(byte))
            self._look()

    def _next_look_s(self) -> float:
        return min(1.0, self._limit_s / 4, self._grace_s / 4)

    def _note(self, name: signal.Signals) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = name, now
        elif now - self._signalled[1] > SAME_S:
            self._end(f"ended at once by a second {name.name}", 128 + name)

    def _look(self) -> None:
        now, beat = time.monotonic(), self._beat
        if self._signalled is not None and now - self._signalled[1] > self._grace_s:
            name = self._signalled[0].name
            self._end(f"no end within run.grace_s = {self._grace_s} s of {name}", 1)
        if beat is not None and now - beat > self._limit_s:
            self._end(
                f"a step has not ended within distributed.timeout_s = {self._limit_s} s; "
                "the stacks of all ranks are in the log",
                1,
                stacks=True,
            )

    def _end(self, reason: str, code: int, *, stacks: bool = False) -> None:
        """End the process from here: its main thread may never return."""
        message = f"rank {self._ranks.rank}: {reason}"
        if stacks:
            with suppress(OSError):  # its reader may have gone
                os.write(STDERR, f"{message}; its threads:\n{_stacks()}".encode())
            time.sleep(OTHERS_S)
        end_process(message, code, said=stacks)


def _stacks() -> str:
    """Of all threads. Written at once: other ranks write theirs into the same log."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def show_stacks_on_request() -> None:
    """SIGUSR1 writes the stacks of all threads to stderr; so does a crash in native code."""
    faulthandler.enable(file=STDERR)
    faulthandler.register(signal.SIGUSR1, file=STDERR, all_threads=True)


def _noted(number: int, frame: FrameType | None) -> None:
    """The wake-up file descriptor has told the thread."""
