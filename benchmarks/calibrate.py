"""What device and links can do here: constants for ``stem-torchrec plan --hardware FILE``.

    python benchmarks/calibrate.py --json FILE
    torchrun --nproc-per-node 8 benchmarks/calibrate.py --json FILE
    torchrun --nnodes 2 ... benchmarks/calibrate.py --json FILE

Measured on each rank, of which the slowest counts: a copy in device memory (reads plus writes), a
batched matrix product in fp32, TF32 and bf16, and, on several ranks, an all-to-all inside a node
and one between nodes. What one rank or one node cannot show is that of the data sheet in
``stem_torchrec/distributed/hardware.py``, and so is the host's time; ``measured`` names what was
measured. On a CPU (``--device cpu``) the figures are the CPU's and gloo's.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from provenance import provenance

from stem_torchrec.distributed.hardware import KNOWN

_ROUNDS = 5


class Calibration:
    """Measurements on this rank's device; every rank makes the same calls."""

    def __init__(self, device: torch.device, small: bool) -> None:
        self._device = device
        self._small = small  # on a CPU, and in a trial

    def copy_bytes_per_s(self) -> float:
        size = (1 << 24) if self._small else (1 << 29)
        source = torch.ones(size, device=self._device)
        target = torch.empty_like(source)
        return 2 * 4 * size / self._seconds(lambda: target.copy_(source))

    def flops_per_s(self, dtype: torch.dtype, tf32: bool = False) -> float:
        """Three experts of 512 x 512 on as many rows each as a large batch has."""
        rows = 1024 if self._small else 65_536
        inputs = torch.ones(3, rows, 512, device=self._device, dtype=dtype)
        weights = torch.ones(3, 512, 512, device=self._device, dtype=dtype)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        seconds = self._seconds(lambda: torch.bmm(inputs, weights))
        torch.backends.cuda.matmul.allow_tf32 = False
        return 2 * 3 * rows * 512 * 512 / seconds

    def exchange_bytes_per_s(self, group: dist.ProcessGroup) -> float:
        """What a rank sends to the others of a group in an all-to-all, per second."""
        size = dist.get_world_size(group)
        number = (1 << 20) if self._small else (1 << 26)
        number = number // size * size
        source = torch.ones(number, device=self._device)
        target = torch.empty_like(source)
        seconds = self._seconds(lambda: dist.all_to_all_single(target, source, group=group))
        return 4 * number * (size - 1) / size / seconds

    def _seconds(self, function: Callable[[], object]) -> float:
        """Median of rounds of ten calls, after a first one."""
        times = []
        for _ in range(_ROUNDS + 1):
            self._wait()
            start = time.perf_counter()
            for _ in range(10):
                function()
            self._wait()
            times.append((time.perf_counter() - start) / 10)
        return median(times[1:])

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure(device: torch.device, small: bool) -> dict[str, float]:
    """What can be measured here; the same keys on every rank."""
    calibration = Calibration(device, small)
    found = {
        "memory_bytes_per_s": calibration.copy_bytes_per_s(),
        "fp32_flops_per_s": calibration.flops_per_s(torch.float32),
        "bf16_flops_per_s": calibration.flops_per_s(torch.bfloat16),
    }
    found["tf32_flops_per_s"] = found["fp32_flops_per_s"]
    if device.type == "cuda":
        found["tf32_flops_per_s"] = calibration.flops_per_s(torch.float32, tf32=True)
    world, here = dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = [range(first, first + here) for first in range(0, world, here)]
    across = [range(first, world, here) for first in range(here)]  # one rank of each node
    if here > 1:
        found["node_link_bytes_per_s"] = calibration.exchange_bytes_per_s(_own_group(nodes))
    if world > here:
        found["network_bytes_per_s"] = calibration.exchange_bytes_per_s(_own_group(across))
    return found


def _own_group(groups: list[range]) -> dist.ProcessGroup:
    """This rank's; all of them are made, by all ranks."""
    made = [dist.new_group(list(ranks)) for ranks in groups]
    return next(
        group for group, ranks in zip(made, groups, strict=True) if dist.get_rank() in ranks
    )


def slowest(found: dict[str, float]) -> dict[str, float]:
    """Of all ranks. Collective."""
    everywhere: list[dict[str, float]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, found)
    return {name: min(each[name] for each in everywhere) for name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    options = parser.parse_args()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    os.environ.setdefault("LOCAL_WORLD_SIZE", "1")
    cuda = options.device == "cuda"
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)
    measured = slowest(measure(device, small=not cuda))
    if dist.get_rank() == 0:
        hardware = KNOWN["h200"]._replace(**measured)
        content = {
            "hardware": hardware._asdict(),
            "measured": sorted(measured),
            "ranks": dist.get_world_size(),
            "provenance": provenance(),
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")
        print(json.dumps(content["hardware"], indent=1))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
