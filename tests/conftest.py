"""Fixtures that more than one folder of tests uses."""

import pytest

from stem_torchrec.config import DistributedConfig
from stem_torchrec.distributed.ranks import start_ranks, stop_ranks


@pytest.fixture(scope="module")
def alone():
    """This process as a job of one rank."""
    yield start_ranks(DistributedConfig(device="cpu"))
    stop_ranks()
