"""How much memory a rank has used."""

import resource
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory of this rank so far.

    On a GPU what its tensors have held (``torch.cuda.max_memory_allocated``), on a CPU the largest
    resident set of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux hands ru_maxrss on from the process that started this one, so it comes second.
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
