"""What goes on, for whoever watches."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Watched = Callable[[], float]


class Stages(Protocol):
    """Shows the stages of a long work.

    ``with stages.stage("count ids", done)`` encloses one; ``done`` gives its share, 0 to 100, below
    0 if unknown, and may be called from another thread at any time within.
    """

    def stage(self, name: str, done: Watched) -> AbstractContextManager[None]: ...


class Unseen:
    """Nobody watches."""

    @contextmanager
    def stage(self, name: str, done: Watched) -> Iterator[None]:
        yield
