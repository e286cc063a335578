"""Notices of torch and torchrec about their own internals, which no user of ours can act on."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("torchrec", "torch.fx", "torch.distributed")


def hide_dependency_notices() -> None:
    """For command-line processes: show errors of the dependencies only."""
    for name in ("", *_LOGGERS):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("stem_torchrec").setLevel(logging.WARNING)  # ours are for the user
    _ignore_warnings()


@contextmanager
def without_dependency_notices() -> Iterator[None]:
    """For processes that are not ours: hide such notices in the block, and leave all as it was."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        _ignore_warnings()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _ignore_warnings() -> None:
    for message in (
        "`broadcast_buffers` is deprecated",
        "`torch.distributed.*is deprecated",
        "Please use DTensor instead",
    ):
        warnings.filterwarnings("ignore", message, FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fbgemm_gpu")
