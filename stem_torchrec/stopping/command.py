"""A signal ends a command in good order: its blocks are left, one line says the rest."""

import argparse
import signal
from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import FrameType

from stem_torchrec.stopping.signals import stop_signals

Command = Callable[[argparse.Namespace, Sequence[str]], int | None]
Farewell = Callable[[signal.Signals, argparse.Namespace], None]


def stoppable(farewell: Farewell) -> Callable[[Command], Command]:
    """A command that a signal ends with code 128 + its number, after its ``farewell``."""
    return partial(_stopped, farewell)


def _stopped(farewell: Farewell, command: Command) -> Command:
    @wraps(command)
    def stopped(options: argparse.Namespace, rest: Sequence[str]) -> int | None:
        received: list[signal.Signals] = []

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(signal.Signals(number))
            raise KeyboardInterrupt

        before = {number: signal.signal(number, stop) for number in stop_signals()}
        try:
            return command(options, rest)
        except BaseException:  # a library may have made another one of it
            if not received:
                raise
            farewell(received[0], options)
            return 128 + received[0]
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return stopped
