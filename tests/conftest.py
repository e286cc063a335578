"""Fixtures that more than one folder of tests uses."""

import signal
from collections.abc import Iterator

import pytest

from stem_torchrec.config import DistributedConfig
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
from tests.distributed.processes import Processes
from tests.support.forked import forked_ranks


@pytest.fixture(scope="session", autouse=True)
def _ranks_are_forked() -> Iterator[None]:
    with forked_ranks():
        yield


@pytest.fixture
def ordinary_signals() -> Iterator[None]:
    """This process and its children take SIGINT and SIGHUP, however the tests were started.

    A shell has ``nohup tests &`` ignore both, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    before_hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, before_hangup)


@pytest.fixture(scope="module")
def alone():
    """This process as a job of one rank."""
    yield start_ranks(DistributedConfig(device="cpu"))
    stop_ranks()


@pytest.fixture(scope="module")
def gpu():
    """This process as a job of one rank on a GPU."""
    yield start_ranks(DistributedConfig(device="cuda"))
    stop_ranks()


@pytest.fixture(scope="session")
def pair():
    """Two gloo ranks; ``pair.run(function, *arguments)``."""
    processes = Processes(2)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def four():
    """Four gloo ranks."""
    processes = Processes(4)
    yield processes
    processes.close()
