"""A signal ends a command in good order: its blocks are left, one line says the rest."""

import argparse
import signal
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType

from stem_torchrec.launch.early_signals import stop_signals

Command = Callable[[argparse.Namespace, Sequence[str]], int | None]


def stoppable(command: Command) -> Command:
    """The command of ``prepare``, ended by a signal with code 128 + its number."""

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
            return _say(received[0], options)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return stopped


def _say(received: signal.Signals, options: argparse.Namespace) -> int:
    from stem_torchrec.console import print_note
    from stem_torchrec.prepare.engine.building import building_folder

    left = "nothing is left"
    if isinstance(options.out, Path) and (folder := building_folder(options.out)).exists():
        left = (
            f"finished stages are kept in {folder}: the same command goes on, --fresh starts anew"
        )
    print_note(f"stopped by {received.name}; {left}")
    return 128 + received
