"""Where numbers must not be rounded: float32 inside of autocast and of TF32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn


def exact(values: Tensor) -> Tensor:
    """In float32 where they are of a lower precision.

    >>> exact(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` in float32, also under autocast.

    For layers whose outputs are logits: bfloat16 has 256 values between a number and its double, so
    that samples would tie and a softmax would not sum to 1.

    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     in_float32(nn.Linear(2, 1), torch.ones(3, 2)).dtype
    torch.float32
    """
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(exact(x))


@contextmanager
def float32_products(precision: Literal["highest", "high"] = "highest") -> Iterator[None]:
    """Matrix products of float32 inside are as precise as this; torch's setting is put back.

    Args:
        precision: ``highest`` for float32 itself, ``high`` for TF32 where the device has it.

    >>> with float32_products("high"):
    ...     torch.get_float32_matmul_precision()
    'high'
    """
    before = torch.get_float32_matmul_precision()
    if before == precision:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
