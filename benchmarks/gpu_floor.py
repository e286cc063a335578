"""The least time that a train step can take on a device: its matrix products, or its bytes."""

from itertools import pairwise
from time import perf_counter
from typing import NamedTuple

import torch
from balancer_runner import Shape


class Ceilings(NamedTuple):
    """What a device reaches in a loop that does nothing else.

    Attributes:
        tf32_flops, bf16_flops: floating-point operations per second of batched products.
        copy_bytes: bytes per second, read and written.
    """

    tf32_flops: float
    bf16_flops: float
    copy_bytes: float

    @classmethod
    def measured(cls, device: torch.device) -> "Ceilings":
        on_gpu = device.type == "cuda"
        rows = 65_536 if on_gpu else 256
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        rates = []
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(3, rows, 512, device=device, dtype=dtype)
            weight = torch.randn(3, 512, 512, device=device, dtype=dtype)
            seconds = _seconds(lambda x=x, weight=weight: torch.bmm(x, weight), device)
            rates.append(2 * 3 * rows * 512 * 512 / seconds)
        torch.backends.cuda.matmul.allow_tf32 = before
        source = torch.empty(1 << (30 if on_gpu else 20), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copy = 2 * source.numel() / _seconds(lambda: target.copy_(source), device)
        return cls(rates[0], rates[1], copy)


def floor_ms(
    shape: Shape, num_tasks: int, ceilings: Ceilings, precision: str, value_bytes: int = 4
) -> float:
    """Milliseconds of the larger of both: products at their ceiling, bytes at copy speed.

    Args:
        value_bytes: of a value in the tables.
    """
    rate = ceilings.bf16_flops if precision == "bf16" else ceilings.tf32_flops
    return 1e3 * max(
        product_flops(shape, num_tasks) / rate,
        least_bytes(shape, num_tasks + 1, value_bytes) / ceilings.copy_bytes,
    )


def product_flops(shape: Shape, num_tasks: int) -> int:
    """Operations of all products of one step, forward and both backward, of STEM-Net."""
    width, num_experts = len(shape.rows) * shape.dim, num_tasks + 1
    perceptrons = [[width, *shape.experts]] * num_experts
    perceptrons += [[2 * width, *shape.hidden, num_experts]] * num_tasks
    perceptrons += [[shape.experts[-1], *shape.hidden, 1]] * num_tasks
    products = sum(i * o for widths in perceptrons for i, o in pairwise(widths))
    return 3 * 2 * shape.batch_size * products


def least_bytes(shape: Shape, num_owners: int, value_bytes: int) -> int:
    """Bytes that the tables alone move: rows read, then read and written again, each id's."""
    row = num_owners * shape.dim * value_bytes
    return 3 * shape.batch_size * len(shape.rows) * shape.bag * row


def _seconds(run: object, device: torch.device, repeats: int = 20) -> float:
    assert callable(run)
    for _ in range(3):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = perf_counter()
    for _ in range(repeats):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (perf_counter() - start) / repeats
