"""Processes that the tests of this folder share."""

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def pair():
    """Two gloo ranks; ``pair.run(function, *arguments)``."""
    processes = Processes(2)
    yield processes
    processes.close()
