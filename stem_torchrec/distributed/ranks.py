"""The ranks of one job: process groups, device, small collectives."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.config import DistributedConfig
from stem_torchrec.distributed.host_memory import keep_freed_memory
from stem_torchrec.errors import EnvironmentFailure, UserError, environment_failures
from stem_torchrec.stopping.parent_watch import end_with_parent

T = TypeVar("T")

_joined = count()
"""Jobs that this process has joined so far; the same number on every rank."""

STACKS_S = 10
"""What a collective has over ``timeout_s``: all ranks write their stacks before one fails."""


@dataclass(frozen=True)
class Ranks:
    """This process among all. The groups are made once, by ``start_ranks``.

    Attributes:
        device: device of this rank.
        host_group: gloo group for tensors and objects on the host.
        save_group: gloo group of the thread that writes checkpoints; nothing else may use it.
        dense_group: own group of the all-reduces of a step's dense part: losses and gradients.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    host_group: dist.ProcessGroup
    save_group: dist.ProcessGroup
    dense_group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def rank_mean(self, local: Tensor) -> Callable[[], Tensor]:
        """Start the mean over ranks of ``local``; call the result for it. Collective."""
        if self.world_size == 1:
            return lambda: local
        total = local.clone()
        work = dist.all_reduce(total, group=self.dense_group, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return total / self.world_size

        return wait

    def joined_mean(self, local: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """``rank_mean`` of several tensors in one all-reduce. Collective."""
        if self.world_size == 1 or not local:
            return lambda: list(local)
        mean = self.rank_mean(torch.cat([part.flatten() for part in local]))
        sizes = [part.numel() for part in local]

        def wait() -> list[Tensor]:
            parts = mean().split(sizes)
            return [part.view_as(like) for part, like in zip(parts, local, strict=True)]

        return wait

    def any(self, flag: Tensor) -> Tensor:
        """() bool on the device: the () bool ``flag`` is set on some rank. Collective."""
        return self.rank_mean(flag.float())() > 0

    def on_first(self, function: Callable[[], T]) -> T:
        """Rank 0's ``function()`` on every rank, its UserError and EnvironmentFailure too.

        Collective, on the host.
        """
        box: list[Any] = [None]
        if self.is_first:
            try:
                with environment_failures():
                    box = [function()]
            except (UserError, EnvironmentFailure) as error:
                box = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.host_group)
        if isinstance(box[0], UserError | EnvironmentFailure):
            raise box[0]
        return box[0]

    def objects_of_all(self, own: T) -> list[T]:
        """Every rank's on every rank, in rank order. Collective, on the host."""
        found = [own] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(found, own, group=self.host_group)
        return found

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """All ranks' rows (n_r, C) on the host, joined in rank order on rank 0. Collective.

        Returns:
            (sum of n_r, C) on rank 0, None elsewhere.
        """
        if self.world_size == 1:
            return rows
        counts: list[int] = [0] * self.world_size
        dist.all_gather_object(counts, len(rows), group=self.host_group)
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts] if self.is_first else None
        dist.gather(padded, parts, dst=0, group=self.host_group)
        if parts is None:
            return None
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def barrier(self) -> None:
        dist.barrier(group=self.host_group)


def device_type(config: DistributedConfig) -> str:
    """``cpu`` or ``cuda``, by the config and by what the machine has."""
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def check_devices(config: DistributedConfig, local_world_size: int) -> None:
    """Raise UserError if the node has fewer CUDA devices than ranks."""
    if device_type(config) == "cuda" and local_world_size > torch.cuda.device_count():
        raise UserError(
            f"--nproc: {local_world_size} ranks on this node, but it has "
            f"{torch.cuda.device_count()} CUDA devices; "
            "start at most one rank per device, or set distributed.device to cpu"
        )


def start_ranks(config: DistributedConfig) -> Ranks:
    """Join the job that torchrun (or ``--nproc``) started. Collective.

    Reads the environment torch elastic sets; a process started alone is a job of one rank. A rank
    ends with its launcher.
    """
    end_with_parent()
    env = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} | dict(
        os.environ
    )
    local_rank, local_world_size = int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"])
    check_devices(config, local_world_size)
    device = torch.device("cpu")
    if device_type(config) == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    timeout = timedelta(seconds=config.timeout_s + STACKS_S)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=int(env["RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            store=_store(timeout),
            timeout=timeout,
        )
    host_group = dist.new_group(backend="gloo", timeout=timeout)
    save_group = dist.new_group(backend="gloo", timeout=timeout)
    dense_group = dist.new_group(timeout=timeout)
    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        local_rank=local_rank,
        local_world_size=local_world_size,
        device=device,
        host_group=host_group,
        save_group=save_group,
        dense_group=dense_group,
    )


def _store(timeout: timedelta) -> dist.Store | None:
    """Where the ranks find each other; None for torch's own choice.

    Torch elastic hands one store to every life of the workers, and a rank that looks up a peer
    may find the address of a dead one. Nodes count restarts each for itself, so this works on one
    node; on several, ``launch/torchrun.py`` tells torch not to share the store.
    """
    if "RANK" not in os.environ:
        return dist.HashStore()
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if life is None or os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return None
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    return dist.PrefixStore(f"life_{life}_{next(_joined)}", store)


@contextmanager
def ranks_of_job(config: DistributedConfig) -> Iterator[Ranks]:
    """The ranks for a block, whose process group is made and ended with it. Collective.

    Raises:
        UserError: the process has a process group already, which is somebody else's.
    """
    if dist.is_initialized():
        raise UserError(
            "this process has a process group already, and a run makes its own: call "
            "torch.distributed.destroy_process_group() first, or use another process"
        )
    ranks = start_ranks(config)
    try:
        yield ranks
    finally:
        stop_ranks()


def stop_ranks() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
