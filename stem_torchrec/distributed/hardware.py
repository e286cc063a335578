"""What a GPU and its links can do: constants of the model of a step's cost."""

import json
from pathlib import Path
from typing import NamedTuple

from stem_torchrec.errors import UserError


class Hardware(NamedTuple):
    """Rates of one GPU and of one direction of its links, all per second, and times of its host.

    ``benchmarks/calibrate.py`` measures them and writes them as JSON.

    Attributes:
        memory_bytes_per_s: device memory, reads plus writes.
        fp32_flops_per_s, tf32_flops_per_s, bf16_flops_per_s: matrix products.
        node_link_bytes_per_s: to the other GPUs of the node.
        network_bytes_per_s: per GPU, to other nodes.
        operation_s: the host, for one operation of the model.
        step_s: the host, for the rest of a step.
    """

    memory_bytes_per_s: float
    fp32_flops_per_s: float
    tf32_flops_per_s: float
    bf16_flops_per_s: float
    node_link_bytes_per_s: float
    network_bytes_per_s: float
    operation_s: float
    step_s: float


# Memory and products of the H200: measured, copy of 2 GiB and bmm of 3 x 65,536 x 512 x 512
# (torch 2.11). The H100 SXM has the same cores; its memory: 3.35 of the H200's 4.8 TB/s (NVIDIA's
# data sheets H100 Tensor Core GPU, H200 Tensor Core GPU). NVLink 4: 900 GB/s, half of it in each
# direction (the same). Network: a 400 Gb/s adapter per GPU (NVIDIA, DGX H100 data sheet: eight
# ConnectX-7 per node), of which 9/10 arrive. Host: of TikTok-shaped steps of 4,096 samples, where
# the device waits for it: 4.3 ms for the 98 operations of the dense part, 4.6 ms for the rest.
_HOST = {"operation_s": 44e-6, "step_s": 4.6e-3}
_LINKS = {"node_link_bytes_per_s": 450e9, "network_bytes_per_s": 0.9 * 50e9}
_PRODUCTS = {"fp32_flops_per_s": 50e12, "tf32_flops_per_s": 224e12, "bf16_flops_per_s": 626e12}
KNOWN = {
    name: Hardware(memory_bytes_per_s=memory, **_PRODUCTS, **_LINKS, **_HOST)
    for name, memory in (("h100", 4.28e12 * 3.35 / 4.8), ("h200", 4.28e12))
}


def hardware_of(text: str) -> Hardware:
    """One of ``KNOWN`` by name, or a JSON file of ``benchmarks/calibrate.py``.

    Raises:
        UserError: it is neither.
    """
    if text in KNOWN:
        return KNOWN[text]
    try:
        measured = json.loads(Path(text).read_text())["hardware"]
        found = Hardware(**{name: float(value) for name, value in measured.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = None
    if found is None or not all(0 < value < float("inf") for value in found):
        raise UserError(
            f"--hardware: {text!r}; allowed: {', '.join(KNOWN)}, or a JSON file that "
            "benchmarks/calibrate.py has written"
        )
    return found
