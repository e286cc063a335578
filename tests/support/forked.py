"""Processes that tests start, forked from one that has imported everything.

Importing torch and TorchRec takes longer than most runs of the tests. All else is as where an
interpreter is started: they get the environment, working folder, limits, standard streams and
ignored signals of the process that starts them as these are then.
"""

import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver, reduction
from pathlib import Path
from typing import Any, Literal

import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stem_torchrec.launch import launcher

_LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
_IMPORTED = ["stem_torchrec.cli.workers", "duckdb", "pyarrow.parquet", "pytest"]
_SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    **dict.fromkeys((signal.SIGHUP, signal.SIGTERM), signal.SIG_DFL),
}
_of_session = dict(os.environ)


@contextmanager
def forked_ranks(start_method: Literal["forkserver", "fork"] = "forkserver") -> Iterator[None]:
    """In this block ``run_workers`` forks its ranks."""

    def configured(**keys: Any) -> LaunchConfig:
        if start_method == "forkserver":
            _start_server()
        return LaunchConfig(**keys | {"start_method": start_method})

    def launch(config: LaunchConfig, worker: Callable[..., Any]) -> elastic_launch:
        return elastic_launch(config, _Surrounded(worker))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher, "LaunchConfig", configured)
        patch.setattr(launcher, "elastic_launch", launch)
        yield


class Forked:
    """A process that calls a function, with what ``subprocess.Popen`` has of one.

    Its exit code is the function's result. Ranks that it launches are forked from it.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: Any,
        stdout: int,
        stderr: int,
        env: Mapping[str, str] | None = None,
    ) -> None:
        _start_server()
        self.args = (function.__name__, *map(str, arguments))
        around = _Surrounded(_command, dict(env or os.environ), streams=_Streams((stdout, stderr)))
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=around, args=(function, *arguments))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @classmethod
    def logged(cls, log: Path, function: Callable[..., int | None], *arguments: Any) -> "Forked":
        """What it says goes into a new file."""
        with log.open("w") as file:
            return cls(function, *arguments, stdout=file.fileno(), stderr=file.fileno())

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _command(function: Callable[..., int | None], *arguments: Any) -> None:
    with forked_ranks("fork"):  # ranks are its children, so that it can pass signals on to them
        raise SystemExit(function(*arguments))


@contextmanager
def commands_are_forked(module: Any) -> Iterator[None]:
    """In this block ``subprocess.Popen`` of a module forks ``python -m stem_torchrec WORD ...``."""

    def start(words: Sequence[str], *, stdout: Any, stderr: Any, env: Mapping[str, str]) -> Forked:
        from stem_torchrec.cli import main

        assert words[1:3] == ["-m", "stem_torchrec"]
        out, err = stdout.fileno(), stderr.fileno()
        return Forked(main, list(words[3:]), stdout=out, stderr=err, env=env)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", start)
        yield


@dataclass
class _Streams:
    """Standard output and error: there what these descriptors are here."""

    numbers: tuple[int, int] = (1, 2)

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return _take_over, tuple(map(reduction.DupFd, self.numbers))


def _take_over(*streams: Any) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.detach(), number)


@dataclass
class _Surrounded:
    """A function of a new process, in what surrounds the one that starts it."""

    worker: Callable[..., Any]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    folder: Path = field(default_factory=Path.cwd)
    limits: dict[int, tuple[int, int]] = field(
        default_factory=lambda: {limit: resource.getrlimit(limit) for limit in _LIMITS}
    )
    ignored: list[int] = field(
        default_factory=lambda: [n for n in _SIGNALS if signal.getsignal(n) is signal.SIG_IGN]
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
        for number, handler in _SIGNALS.items():
            signal.signal(number, signal.SIG_IGN if number in self.ignored else handler)
        return self.worker(*arguments)


def _start_server() -> None:
    """With the environment of the whole session; what importing says is nobody's."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    now, streams = dict(os.environ), [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.environ.clear()
        os.environ.update(_of_session | {"OMP_NUM_THREADS": now.get("OMP_NUM_THREADS", "1")})
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
