"""What a rule draws or reads on the host, on the device that it computes on."""

import torch
from torch import Tensor


def from_host(values: Tensor, device: torch.device) -> Tensor:
    """A copy on the device; from page-locked memory, since any other copy waits for the device."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)
