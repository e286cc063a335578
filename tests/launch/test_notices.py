"""Which notices of a command's dependencies are hidden, and that ours are not."""

import logging
import warnings
from collections.abc import Iterator

import pytest

from stem_torchrec.launch.notices import hide_dependency_notices, without_dependency_notices

NAMES = ("", "torchrec", "torch.fx", "torch.distributed", "stem_torchrec", "stem_torchrec.launch")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in NAMES}
    with warnings.catch_warnings():
        yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_warnings_of_every_room_are_shown() -> None:
    hide_dependency_notices()
    for room in ("checkpoint.folders", "runs.records", "training.trainer", "launch.notices"):
        assert logging.getLogger(f"stem_torchrec.{room}").isEnabledFor(logging.WARNING), room
    assert not logging.getLogger("torchrec.distributed").isEnabledFor(logging.WARNING)


def test_a_block_hides_notices_and_leaves_logs_as_they_were() -> None:
    before = {name: logging.getLogger(name).level for name in NAMES}
    of_user = logging.getLogger("of.the.user").getEffectiveLevel()
    with without_dependency_notices():
        warnings.warn("Please use DTensor instead", FutureWarning, stacklevel=1)
        assert not logging.getLogger("torchrec.planner").isEnabledFor(logging.WARNING)
        assert logging.getLogger("of.the.user").getEffectiveLevel() == of_user
    assert {name: logging.getLogger(name).level for name in NAMES} == before
    with pytest.warns(FutureWarning, match="DTensor"):
        warnings.warn("Please use DTensor instead", FutureWarning, stacklevel=1)
