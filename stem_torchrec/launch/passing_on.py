"""A launcher's part in stopping: it passes signals on to its workers and waits for them.

Torch's agent would end the workers itself and then fail; here they leave by themselves, and the
job ends as they did.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api

from stem_torchrec.launch.early_signals import SIGNALS, stop_signals
from stem_torchrec.launch.failures import comes_again, error_of
from stem_torchrec.launch.interruption import SAME_S
from stem_torchrec.launch.node_address import give_up_lost_peers
from stem_torchrec.storage.lock.holder import share_job_name

LEFT_TO_TORCH = "SIGQUIT"
"""For ``LaunchConfig.signals_to_handle`` and torchrun's ``--signals-to-handle``."""

_FROM_TERMINALS = {signal.SIGINT, signal.SIGHUP}


class PassedOn:
    """A stop signal goes to the workers as SIGTERM; a second one kills them.

    Attributes:
        signal: the first that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self.agents: list[Any] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), now
            for agent in self.agents:
                agent._remaining_restarts = 0
            _send(signal.SIGTERM)
        elif now - self._since > SAME_S:
            _send(signal.SIGKILL)

    def before_the_first_step(self, failure: ChildFailedError) -> bool:
        """Whether a worker has failed only because the signal came while it started."""
        codes = {-name for name in SIGNALS}
        return self.signal is not None and any(
            worker.exitcode in codes for worker in failure.failures.values()
        )


@contextmanager
def passing_on_signals() -> Iterator[PassedOn]:
    """Around a launch with ``signals_to_handle=LEFT_TO_TORCH``, in the main thread."""
    passed_on, ended = PassedOn(), Event()

    class Agent(LocalElasticAgent):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            passed_on.agents.append(self)
            handler = self._worker_group.spec.rdzv_handler
            store = getattr(handler, "_store", None)
            share_job_name(store, handler.get_run_id())
            if (port := getattr(store, "port", None)) is not None:
                give_up_lost_peers(port)

        def _start_workers(self, *arguments: Any, **options: Any) -> Any:
            started = super()._start_workers(*arguments, **options)
            if passed_on.signal is not None:
                _send(signal.SIGTERM)  # it came when there were no workers to pass it on to
            return started

        def _monitor_workers(self, *arguments: Any, **options: Any) -> Any:
            result = super()._monitor_workers(*arguments, **options)
            errors = [error_of(rank, failure) for rank, failure in result.failures.items()]
            if any(comes_again(error) for error in errors):
                self._remaining_restarts = 0
            return result

    # Workers inherit the mask: what a terminal sends to them too would end those that have not
    # begun to train. Python needs one thread that gets the signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINALS)
    thread = Thread(target=_receive, args=(ended,), daemon=True)
    thread.start()
    handlers = {name: signal.signal(name, passed_on) for name in stop_signals()}
    agent, api.LocalElasticAgent = api.LocalElasticAgent, Agent
    try:
        yield passed_on
    finally:
        api.LocalElasticAgent = agent
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
