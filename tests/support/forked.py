"""Ranks that a test's process launches, forked from one that has imported everything.

Importing torch and TorchRec takes longer than most runs of the tests. All else is as where ranks
are spawned: they get the environment, working folder, limits and standard streams of the process
that launches them as these are then. Commands that tests start as processes of their own spawn
theirs.
"""

import multiprocessing
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stem_torchrec.launch import launcher

_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)


@contextmanager
def forked_ranks() -> Iterator[None]:
    """In this block ``run_workers`` forks its ranks."""
    multiprocessing.set_forkserver_preload(["stem_torchrec.cli.workers", "pytest"])
    environment = dict(os.environ)

    def configured(**keys: Any) -> LaunchConfig:
        _start_server(environment)
        return LaunchConfig(**keys | {"start_method": "forkserver"})

    def launch(config: LaunchConfig, worker: Callable[..., Any]) -> elastic_launch:
        return elastic_launch(config, _Surrounded(worker))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "LaunchConfig", configured)
        patch.setattr(launcher, "elastic_launch", launch)
        yield


@dataclass
class _Streams:
    """Standard output and error of the process that launches: there what this one's are here."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return _take_over, (reduction.DupFd(1), reduction.DupFd(2))


def _take_over(*streams: Any) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.detach(), number)


@dataclass
class _Surrounded:
    """A rank's function, in what surrounds the process that launches it."""

    worker: Callable[..., Any]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path = field(default_factory=Path.cwd)
    limits: dict[int, tuple[int, int]] = field(
        default_factory=lambda: {limit: resource.getrlimit(limit) for limit in _LIMITS}
    )
    streams: Any = field(default_factory=_Streams)

    def __post_init__(self) -> None:
        # Torch's launcher asks for these.
        self.__name__, self.__qualname__ = self.worker.__name__, self.worker.__qualname__

    def __call__(self, *arguments: Any) -> Any:
        os.environ.update(self.environment)
        os.chdir(self.folder)
        for limit, values in self.limits.items():
            resource.setrlimit(limit, values)
        return self.worker(*arguments)


def _start_server(environment: dict[str, str]) -> None:
    """With the environment of the whole session; what importing says is nobody's."""
    now, streams = dict(os.environ), [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ.clear()
        os.environ.update(environment | {"OMP_NUM_THREADS": now["OMP_NUM_THREADS"]})
        for number in (1, 2):
            os.dup2(nowhere, number)
        forkserver.ensure_running()
    finally:
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        for number in (nowhere, *streams):
            os.close(number)
        os.environ.clear()
        os.environ.update(now)
