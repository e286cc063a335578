"""Run a function on the ranks torchrun gave, or on local workers of torch's elastic launcher."""

import logging
import os
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from stem_torchrec.launch.agent import LEFT_TO_TORCH, stopping_with_workers
from stem_torchrec.launch.failures import error_of


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ or "RANK" in os.environ


def run_workers(
    num_workers: int, worker: Callable[..., Any], *arguments: Any, max_restarts: int = 0
) -> Any:
    """Call ``worker(*arguments)`` on every rank and return rank 0's result.

    Under torchrun this process is one of its ranks and returns its own result. One worker runs in
    this process, unless it may be started again. When a worker fails the others are ended, and all
    are started again up to ``max_restarts`` times, but for a UserError. SIGTERM, SIGINT and SIGHUP
    are passed on to workers; the result is None where they came before the workers had begun.

    Raises:
        UserError: a worker raised it; same message.
        WorkerError: a worker failed otherwise.
    """
    if under_torchrun() or (num_workers == 1 and max_restarts == 0):
        return worker(*arguments)
    # Each worker gets its share of the cores, unless told otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))
    # The failed rank's message is reported below; the launcher's own log would follow it.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as log_dir:
        launch = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_workers,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=max_restarts,
            monitor_interval=0.1,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=log_dir),
            signals_to_handle=LEFT_TO_TORCH,
        )
        try:
            with stopping_with_workers() as passed_on:
                results = elastic_launch(launch, worker)(*arguments)
        except ChildFailedError as failure:
            if passed_on.before_the_first_step(failure):
                return None
            raise error_of(*failure.get_first_failure()) from None
    return results[0]


def default_num_workers(device: str) -> int:
    """One per CUDA device of this node; one on a CPU."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1
