"""Forward and backward of 8 + T experts as batched products beside a Python loop over modules.

    python benchmarks/experts.py --tasks 2 4 8 --json FILE

Both have the same widths and read the same inputs: the shared experts one input, each task's expert
the task's. They run in turns in one process; ``ratio`` is the median over rounds of the loop's time
over the batched one's: above 1 the batched experts are faster.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from provenance import provenance
from torch import Tensor, nn

from stem_torchrec.nn.mlp import BatchedMlp

NUM_SHARED = 8
WIDTHS = (512, 512, 512)


class Loop(nn.Module):
    """One module per expert, called one after the other."""

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(
                *(
                    layer
                    for i, o in pairwise([width, *WIDTHS])
                    for layer in (nn.Linear(i, o), nn.ReLU(inplace=True))
                )
            )
            for _ in range(NUM_SHARED + num_tasks)
        )

    def forward(self, shared: Tensor, tasks: Tensor) -> Tensor:
        inputs = [shared] * NUM_SHARED + [*tasks]
        return torch.stack([e(x) for e, x in zip(self.experts, inputs, strict=True)])


class Batched(nn.Module):
    """The trainer's experts: shared ones and the tasks', each group in one."""

    def __init__(self, num_tasks: int, width: int) -> None:
        super().__init__()
        self.shared = BatchedMlp(NUM_SHARED, width, WIDTHS)
        self.tasks = BatchedMlp(num_tasks, width, WIDTHS)

    def forward(self, shared: Tensor, tasks: Tensor) -> Tensor:
        return torch.cat([self.shared(shared), self.tasks(tasks)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[2048])
    parser.add_argument("--width", type=int, default=128, help="columns of each input")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for num_tasks in options.tasks:
        for batch_size in options.batch_size:
            rows.append(measure(num_tasks, batch_size, options.width, options.rounds))
            rows[-1]["threads"] = options.threads
            print(json.dumps(rows[-1]), flush=True)
    result = {"rows": rows, "provenance": provenance()}
    options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(num_tasks: int, batch_size: int, width: int, rounds: int) -> dict[str, Any]:
    from stem_torchrec.distributed.host_memory import keep_freed_memory

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared = torch.randn(batch_size, width, device=device, requires_grad=True)
    tasks = torch.randn(num_tasks, batch_size, width, device=device, requires_grad=True)
    steps = [
        step_of(kind(num_tasks, width).to(device), shared, tasks, device)
        for kind in (Loop, Batched)
    ]
    for step in steps:
        step()
    pairs = [tuple(step() for step in steps) for _ in range(rounds)]
    ratios = [loop / batched for loop, batched in pairs]
    return {
        "experts": NUM_SHARED + num_tasks,
        "tasks": num_tasks,
        "batch_size": batch_size,
        "widths": WIDTHS,
        "device": device.type,
        "loop_s": median(loop for loop, _ in pairs),
        "batched_s": median(batched for _, batched in pairs),
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def step_of(
    experts: nn.Module, shared: Tensor, tasks: Tensor, device: torch.device
) -> Callable[[], float]:
    """Forward and backward; returns their seconds."""

    def step() -> float:
        _wait(device)
        start = time.perf_counter()
        outputs = experts(shared, tasks)
        outputs.backward(torch.ones_like(outputs))
        _wait(device)
        return time.perf_counter() - start

    return step


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
