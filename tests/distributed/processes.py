"""Real gloo processes that stay up and run one function after another.

Starting a process costs seconds (it imports torchrec), so a group of processes is started once
and given many functions. A function runs on every rank at the same time, as ``function(ranks,
*arguments)``; it has to be importable, and its arguments and results go through pickle.
"""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


class RankFailed(AssertionError):
    """A function failed on a rank; the message holds that rank's traceback."""


class Processes:
    """``world_size`` ranks of one job on this machine, started at the first ``run``."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._folder: tempfile.TemporaryDirectory | None = None
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []

    def run(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 180
    ) -> list[Any]:
        """Call ``function(ranks, *arguments)`` on every rank; the results in rank order.

        Raises:
            RankFailed: a rank raised or died, or not all ranks ended within ``timeout_s``. The
                processes are ended then; the next ``run`` starts new ones.
        """
        if not self._processes:
            self._start()
        # Plain pickle: the reductions of torch.multiprocessing would hand over shared memory.
        message = pickle.dumps((function, arguments))
        for connection in self._connections:
            connection.send_bytes(message)
        try:
            return self._results(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        for connection in self._connections:
            connection.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._connections, self._folder = [], [], None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self.world_size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(rank, self.world_size, Path(self._folder.name) / "store", there),
                daemon=True,
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._connections.append(here)

    def _results(self, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < self.world_size:
            waiting = [self._connections[r] for r in range(self.world_size) if r not in results]
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = [r for r in range(self.world_size) if r not in results]
                raise RankFailed(f"no result of ranks {missing} in time")
            for connection in ready:
                rank = self._connections.index(connection)
                try:
                    failed, value = pickle.loads(connection.recv_bytes())
                except EOFError:
                    self._processes[rank].join(10)
                    code = self._processes[rank].exitcode
                    raise RankFailed(f"rank {rank} ended with exit code {code}") from None
                if failed:
                    raise RankFailed(f"rank {rank}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.world_size)]


def _serve(rank: int, world_size: int, store: Path, connection: Connection) -> None:
    """One rank: join the job, then run what comes."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
    }
    try:
        ranks = _join(rank, world_size, store)
    except BaseException:
        connection.send_bytes(pickle.dumps((True, traceback.format_exc())))
        return
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            function, arguments = pickle.loads(message)
            answer = pickle.dumps((False, function(ranks, *arguments)))
        except BaseException:
            answer = pickle.dumps((True, traceback.format_exc()))
        connection.send_bytes(answer)


def _join(rank: int, world_size: int, store: Path) -> Any:
    import torch
    import torch.distributed as dist

    import stem_torchrec.training.trainer  # noqa: F401 - before warnings become errors
    from stem_torchrec.config import DistributedConfig
    from stem_torchrec.distributed.ranks import start_ranks

    torch.set_num_threads(1)
    timeout = timedelta(seconds=120)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(store), world_size),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
    warnings.simplefilter("error")
    for message in (
        "Please use DTensor instead",
        r"`broadcast_buffers` is deprecated",
        r"`torch\.distributed.* is deprecated",
    ):
        warnings.filterwarnings("ignore", message, FutureWarning)
    # FBGEMM's dense kernel: its gradients are checked against one rank's fused ones.
    warnings.filterwarnings("ignore", "fbgemm::dense_embedding_codegen_lookup", UserWarning)
    return start_ranks(DistributedConfig(device="cpu", timeout_s=120))
