"""Whether this machine can hold a model at all: a lower bound, before anything is allocated."""

import os
from pathlib import Path

import torch

from stem_torchrec.config import Config
from stem_torchrec.distributed.ranks import device_type
from stem_torchrec.distributed.recommender import Recommender
from stem_torchrec.errors import UserError

GIB = 1024**3
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")

# Float32 numbers per dense weight: itself, its gradient, and what its optimizer keeps.
_DENSE = {"sgd": 2, "adagrad": 3, "adam": 4, "adamw": 4}
# Float32 numbers that the optimizer keeps per value of a table; the value has its own precision.
_TABLE_STATES = {"sgd": 0, "rowwise_adagrad": 0, "adagrad": 1, "adam": 2}


def check_memory(config: Config, recommender: Recommender, num_workers: int) -> None:
    """Refuse a model that is larger than the memory of the ranks on this machine.

    Tables may be spread over other machines, so they count where all ranks are here, on a CPU. On
    GPUs the sharding plan knows their memory.

    Args:
        recommender: on the meta device.

    Raises:
        UserError: weights, gradients and optimizer states alone do not fit.
    """
    dense = sum(weight.nbytes for weight in recommender.model.parameters())
    dense *= _DENSE[config.optim.optimizer]
    tables = sum(
        table.nbytes + 4 * table.numel() * _TABLE_STATES[config.embedding.optimizer]
        for table in recommender.embeddings.parameters()
    )
    if device_type(config.distributed) == "cuda":
        num_workers, tables = 1, 0
        room = torch.cuda.get_device_properties(0).total_memory
    else:
        room = host_memory_bytes()
    need = num_workers * dense + tables
    if need > room:
        raise UserError(
            f"model, embedding: weights, gradients and optimizer states need "
            f"{need / GIB:,.1f} GiB ({num_workers} x {dense / GIB:,.1f} dense, "
            f"{tables / GIB:,.1f} tables), but there are {room / GIB:,.1f} GiB; see "
            "model.expert_widths, model.num_shared_experts, model.layers, embedding.dim, "
            "embedding.dims"
        )


def host_memory_bytes() -> int:
    """Memory of this machine, or what its container may use of it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, _LIMITS):
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)
