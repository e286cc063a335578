"""The models, batches and counters of ``balancers.py``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A workload: F features of ``rows`` table rows each, bags of ``bag`` ids (1: single ids)."""

    rows: tuple[int, ...]
    dim: int
    bag: int
    batch_size: int
    experts: tuple[int, ...]
    hidden: tuple[int, ...]


_TIKTOK_ROWS = (70_000, 400_000, 150_000, 400, 5, 90_000, 75_000, 100)

WORKLOADS = {
    "small": Shape((1000,) * 4, 16, 1, 2048, (64, 32), (32,)),
    "tiktok": Shape(_TIKTOK_ROWS, 16, 1, 2048, (512, 512, 512), (128, 64)),
    "tiktok_20m": Shape(
        tuple(25 * rows for rows in _TIKTOK_ROWS), 16, 1, 2048, (512, 512, 512), (128, 64)
    ),
    # 64 features, D 64 and 10 M rows on a GPU; on a CPU a quarter of the features and 1 % of rows.
    "ads": Shape((156_250,) * 64, 64, 10, 2048, (512, 256), (128, 64)),
    "ads_cpu": Shape((6_250,) * 16, 32, 10, 512, (256, 128), (64,)),
}


class Runner:
    """A model with in-memory batches; ``run`` times steps on all ranks together."""

    def __init__(
        self, ranks: Any, folder: Path, shape: Shape, num_tasks: int, balance: dict[str, Any]
    ) -> None:
        from stem_torchrec.config import Config
        from stem_torchrec.training.session import build

        schema = schema_of(shape, num_tasks)
        folder.mkdir()
        schema.save(folder)
        config = Config.model_validate(
            {
                "run": {"dir": folder / "run"},
                "data": {"path": folder},
                "model": {
                    "expert_widths": shape.experts,
                    "gate_widths": shape.hidden,
                    "tower_widths": shape.hidden,
                },
                "embedding": {"dim": shape.dim},
                "train": {"batch_size": shape.batch_size},
                "balance": balance,
            }
        )
        self._ranks = ranks
        self._session = build(config, ranks)
        self._session.recommender.train()
        self._batches = cycle(list(batches_of(shape, schema, ranks.rank)))
        self._step = 0
        self.backward_s: list[float] = []
        self._time_backward()

    def run(self, steps: int) -> float:
        """Seconds of so many steps, from when all ranks start to when all are done."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self._session.optimizers.set_learning_rates(1.0)
            if self._session.fork is not None:
                self._session.fork.begin(self._step)
            self._session.step(self._batches)
            self._step += 1
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        import torch

        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._ranks.barrier()

    def _time_backward(self) -> None:
        dense_step = self._session.step._gradients.dense_step
        gradients = dense_step._gradients

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            found = gradients(*arguments)
            self.backward_s.append(time.perf_counter() - start)
            return found

        dense_step._gradients = timed


def schema_of(shape: Shape, num_tasks: int) -> Any:
    from stem_torchrec.data.schema import Feature, Schema, Task

    kind = "id" if shape.bag == 1 else "bag"
    return Schema(
        features=tuple(
            Feature(name=f"f{i}", kind=kind, num_embeddings=rows)
            for i, rows in enumerate(shape.rows)
        ),
        tasks=tuple(Task(name=f"t{i}") for i in range(num_tasks)),
    )


def batches_of(shape: Shape, schema: Any, rank: int, number: int = 4) -> Iterator[Any]:
    """Random batches; bags hold ``bag`` ids on average."""
    import torch
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from stem_torchrec.data.batch import Batch

    generator = torch.Generator().manual_seed(rank)
    size = shape.batch_size
    for _ in range(number):
        longest = 2 * shape.bag - 1
        lengths = torch.randint(1, longest + 1, (len(shape.rows), size), generator=generator)
        values = [
            torch.randint(rows, (int(total),), generator=generator)
            for rows, total in zip(shape.rows, lengths.sum(dim=1), strict=True)
        ]
        labels = torch.rand(size, len(schema.tasks), generator=generator) < 0.2
        yield Batch(
            sparse=KeyedJaggedTensor(
                keys=[f.name for f in schema.sparse],
                values=torch.cat(values),
                length_per_key=[len(of_feature) for of_feature in values],  # as the reader has it
                lengths=lengths.flatten().to(torch.int32),
                stride=size,
            ),
            dense=torch.zeros(size, 0),
            labels=labels.float(),
            num_samples=size,
        )


@contextmanager
def counted_traffic() -> Iterator[dict[str, int]]:
    """Counts what this process puts into all-reduces called from Python."""
    import torch.distributed as dist

    original, count = dist.all_reduce, {"bytes": 0}

    def counting(tensor: Any, *arguments: Any, **options: Any) -> Any:
        count["bytes"] += tensor.numel() * tensor.element_size()
        return original(tensor, *arguments, **options)

    dist.all_reduce = counting
    try:
        yield count
    finally:
        dist.all_reduce = original


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmRSS")
