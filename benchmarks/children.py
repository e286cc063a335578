"""Contestants in processes of their own, timed in interleaved rounds."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from contestants import Contestant, Report, serve


@dataclass
class Timing:
    """What the rounds of one contestant gave.

    Attributes:
        seconds: per step, one entry per round.
        busy_cores: processor time over time, one entry per round.
        failure: why it ended early; None if it did not.
    """

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    busy_cores: list[float] = field(default_factory=list)
    peak_rss_bytes: int = 0
    sharding: dict[str, int] | None = None
    failure: str | None = None


class Child:
    """A contestant's process; it computes only between ``run`` and its return."""

    def __init__(self, contestant: Contestant, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._commands, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(contestant, threads, theirs))
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the child loads its libraries
        self.process.start()
        theirs.close()

    def report(self) -> Report:
        """Wait for the answer to the last command, the start being the first."""
        try:
            return self._commands.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            return Report(0.0, 0.0, 0, failure=f"process ended with exit code {code}")

    def run(self, num_steps: int) -> Report:
        self._commands.send(num_steps)
        return self.report()

    def close(self) -> None:
        if self.process.is_alive():
            self._commands.send(None)
        self.process.join()


@contextmanager
def started(contestants: Sequence[Contestant], threads: int) -> Iterator[list[Child]]:
    """All contestants' processes, built one after the other and idle."""
    with ExitStack() as stack:
        children = []
        for contestant in contestants:
            child = Child(contestant, threads)
            stack.callback(child.close)
            children.append(child)
        yield children


def timings(
    contestants: Sequence[Contestant], *, threads: int, rounds: int, steps: int, warmup_steps: int
) -> list[Timing]:
    """Seconds per step of each contestant: every round runs all of them, one after the other.

    Args:
        steps: of one contestant in one round.
        warmup_steps: of each contestant before the first round, not timed.
    """
    results = [Timing(contestant) for contestant in contestants]
    with started(contestants, threads) as children:
        for child, result in zip(children, results, strict=True):
            _record(result, child.report())
        for round_number in range(-1, rounds):
            num_steps = warmup_steps if round_number < 0 else steps
            for child, result in zip(children, results, strict=True):
                if result.failure is None:
                    report = child.run(num_steps)
                    _record(result, report)
                    if report.failure is None and round_number >= 0:
                        result.seconds.append(report.seconds / num_steps)
                        result.busy_cores.append(report.cpu_seconds / report.seconds)
    return results


def _record(result: Timing, report: Report) -> None:
    result.peak_rss_bytes = max(result.peak_rss_bytes, report.peak_rss_bytes)
    result.sharding = report.sharding or result.sharding
    result.failure = report.failure
