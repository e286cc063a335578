"""Notices of torch and torchrec about their own internals, which no user of ours can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def hide_dependency_notices() -> None:
    """For command-line processes: show errors of the dependencies only."""
    for name in ("", "torchrec", "torch.fx", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("stem_torchrec").setLevel(logging.WARNING)  # ours are for the user
    _ignore_warnings()


@contextmanager
def without_dependency_warnings() -> Iterator[None]:
    """For processes that are not ours: leave such warnings out of the block, and change no log."""
    with warnings.catch_warnings():
        _ignore_warnings()
        yield


def _ignore_warnings() -> None:
    for message in (
        "`broadcast_buffers` is deprecated",
        "`torch.distributed.*is deprecated",
        "Please use DTensor instead",
    ):
        warnings.filterwarnings("ignore", message, FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fbgemm_gpu")
