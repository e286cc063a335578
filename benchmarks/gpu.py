"""Train steps on one device, everything side by side: this trainer, plain PyTorch, the floor.

In-memory batches, the metrics of the training stream included. The variants of a case take turns
(A B A B), so that what the device does meanwhile meets them all; a figure is the median of the
rounds. ``--device cpu`` is a dry run with tiny shapes.
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from balancer_runner import WORKLOADS, Shape, batches_of, schema_of
from gpu_floor import Ceilings, floor_ms
from plain_stem_net import PlainStemNet
from provenance import provenance

from stem_torchrec.config import Config, DistributedConfig
from stem_torchrec.distributed.ranks import Ranks, start_ranks, stop_ranks
from stem_torchrec.training.metrics import TrainMetrics, step_sums
from stem_torchrec.training.session import build
from stem_torchrec.training.train_record import train_metrics

Step = Callable[[], None]
Overrides = dict[str, dict[str, Any]]

FP32: Overrides = {"train": {"precision": "fp32"}}
TF32: Overrides = {"train": {"precision": "tf32"}}
BF16: Overrides = {"train": {"precision": "bf16"}}
FUSED: Overrides = {"embedding": {"layout": "fused"}}
COMPILED: Overrides = {"train": {"compile": "on"}}
CAPTURED: Overrides = {"train": {"capture": "on"}}
FP16_TABLES: Overrides = {"embedding": {"precision": "fp16"}}
ROUNDS = 3


def together(*parts: Overrides) -> Overrides:
    """Several overrides as one."""
    merged: Overrides = {}
    for part in parts:
        for section, keys in part.items():
            merged[section] = merged.get(section, {}) | keys
    return merged


def balanced(boundary: str, gram_rows: int | None = None) -> Overrides:
    keys = {"rule": "multi_balance", "boundary": boundary, "gram_rows": gram_rows}
    return together(BEST, {"balance": keys})


BEST = together(BF16, FUSED, CAPTURED)
PRECISIONS = {"fp32": FP32, "tf32": TF32, "bf16": BF16}
LAYOUTS = {"bf16 fused": together(BF16, FUSED), "bf16 fused captured": BEST}
COMPILES = {"bf16 fused captured compiled": together(BEST, COMPILED)}
HALVES = {"bf16 fused captured fp16 tables": together(BEST, FP16_TABLES)}
BALANCED = {
    "bf16 fused captured": BEST,
    "bf16 fused captured, multi_balance experts": balanced("experts"),
    "bf16 fused captured, multi_balance pooled 256": balanced("pooled", 256),
}
BALANCED_COMPILED = {
    name.replace("captured", "captured compiled"): together(overrides, COMPILED)
    for name, overrides in BALANCED.items()
}


@dataclass(frozen=True)
class Case:
    """A workload with the variants that are timed on it; ``plain``: plain PyTorch's too."""

    workload: str
    tasks: int
    batch: int
    variants: dict[str, Overrides]
    plain: tuple[str, ...] = ()


CASES = (
    Case("tiktok", 2, 65_536, PRECISIONS | LAYOUTS, ("tf32", "bf16")),
    Case("tiktok", 2, 4_096, {"tf32": TF32, "bf16": BF16} | LAYOUTS, ("bf16",)),
    Case("tiktok", 8, 16_384, {"tf32": TF32, "bf16": BF16} | LAYOUTS),
    Case("ads", 8, 8_192, {"tf32": TF32} | LAYOUTS),
    Case("ads", 8, 8_192, HALVES),
    Case("tiktok", 2, 65_536, BALANCED),
    Case("tiktok", 8, 16_384, BALANCED),
    Case("tiktok_20m", 2, 65_536, LAYOUTS, ("bf16",)),
    Case("tiktok", 2, 65_536, COMPILES, ("bf16 compiled",)),
    Case("tiktok", 2, 4_096, COMPILES, ("bf16 compiled",)),
    Case("tiktok", 8, 16_384, COMPILES),
    Case("ads", 8, 8_192, COMPILES),
    Case("tiktok", 2, 65_536, BALANCED_COMPILED),
    Case("tiktok", 8, 16_384, BALANCED_COMPILED),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="steps of a round")
    parser.add_argument("--cases", help="numbers of cases, such as 0,2 (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("torchrec", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    chosen = [CASES[int(k)] for k in options.cases.split(",")] if options.cases else CASES
    ranks = start_ranks(DistributedConfig(device=options.device))
    ceilings = Ceilings.measured(ranks.device)
    rows: list[dict[str, Any]] = []
    for case in chosen:
        for row in timed(case, ranks, options.steps, ceilings):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.json is not None:  # each time: a lent device may be taken away
                result = {"provenance": provenance(), "ceilings": ceilings._asdict(), "rows": rows}
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(table(rows))
    stop_ranks()


def timed(case: Case, ranks: Ranks, steps: int, ceilings: Ceilings) -> Iterator[dict[str, Any]]:
    """A row per variant; one that fails has its error in place of times."""
    shape = replace(WORKLOADS[case.workload], batch_size=case.batch)
    if ranks.device.type == "cpu":
        shape, steps = _tiny(shape), 2
    makers = {
        name: lambda overrides=overrides: trainer(shape, case.tasks, overrides, ranks)
        for name, overrides in case.variants.items()
    }
    makers |= {f"plain {how}": lambda how=how: plain(shape, case.tasks, how) for how in case.plain}
    stepping: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for name, make in makers.items():
        try:
            stepping[name] = make()
            _time(stepping[name], steps, ranks.device)  # warm-up, compiling, capturing
        except Exception as error:  # the others are still worth timing
            stepping.pop(name, None)
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    rounds: dict[str, list[float]] = {name: [] for name in stepping}
    for _ in range(ROUNDS):
        for name, step in stepping.items():
            rounds[name].append(_time(step, steps, ranks.device))
    about = {"workload": case.workload, "tasks": case.tasks, "batch": shape.batch_size}
    for name, times in rounds.items():
        ms = median(times)
        products, value_bytes = "bf16" if "bf16" in name else "tf32", 2 if "fp16" in name else 4
        floor = floor_ms(shape, case.tasks, ceilings, products, value_bytes)
        figures = {"step_ms": round(ms, 3), "rounds_ms": [round(t, 3) for t in times]}
        figures |= {"samples_per_s": round(shape.batch_size / ms * 1e3)}
        yield {**about, "variant": name, **figures, "floor_share": round(floor / ms, 3)}
    for name, error in failed.items():
        yield {**about, "variant": name, "error": error}


def trainer(shape: Shape, num_tasks: int, overrides: Overrides, ranks: Ranks) -> Step:
    """The trainer's step with its metrics."""
    schema = schema_of(shape, num_tasks)
    widths = {"gate_widths": shape.hidden, "tower_widths": shape.hidden}
    with tempfile.TemporaryDirectory() as folder:
        schema.save(Path(folder))
        config = Config.model_validate(
            together(
                {
                    "run": {"dir": f"{folder}/run"},
                    "data": {"path": folder},
                    "model": {"expert_widths": shape.experts, **widths},
                    "embedding": {"dim": shape.dim},
                    "train": {"batch_size": shape.batch_size},
                    "distributed": {"device": ranks.device.type},
                },
                overrides,
            )
        )
        session = build(config, ranks)
    session.recommender.train()
    batches = list(batches_of(shape, schema, ranks.rank))
    if ranks.device.type == "cuda":
        batches = [batch.pin_memory() for batch in batches]
    stream, metrics = cycle(batches), train_metrics(session)
    done = 0

    def step() -> None:
        nonlocal done
        session.optimizers.set_applied_steps(done)
        session.optimizers.set_learning_rates(1.0)
        if session.fork is not None:
            session.fork.begin(done)
        _count(metrics, session.step(stream))
        done += 1

    return step


def _count(metrics: TrainMetrics, done: Any) -> None:
    metrics.add(step_sums(done.dense), len(done.batch.labels))


def plain(shape: Shape, num_tasks: int, how: str) -> Step:
    """Plain PyTorch: one wide table per feature, dense Adam on everything, fused."""
    if shape.bag > 1:
        raise ValueError("plain PyTorch's model reads single ids")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = PlainStemNet(shape.rows, num_tasks, shape.dim, shape.experts, shape.hidden).to(device)
    loss: Callable[..., torch.Tensor] = model.loss
    if "compiled" in how:
        loss = torch.compile(loss)
    bf16 = "bf16" in how
    cast = torch.autocast(device, torch.bfloat16) if bf16 else nullcontext()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack(
        [torch.randint(rows, (shape.batch_size,), generator=generator) for rows in shape.rows]
    ).to(device)
    labels = (torch.rand(shape.batch_size, num_tasks, generator=generator) < 0.2).float().to(device)

    def step() -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        optimizer.zero_grad()
        with cast:
            value = loss(ids, labels, 0.0)
        value.backward()
        optimizer.step()

    return step


def _time(step: Step, steps: int, device: torch.device) -> float:
    """Milliseconds of a step, over a round of them."""
    _wait(device)
    start = perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (perf_counter() - start) / steps * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tiny(shape: Shape) -> Shape:
    rows = tuple(min(rows, 50) for rows in shape.rows[:4])
    return replace(shape, rows=rows, batch_size=32, experts=(16, 8), hidden=(8,))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| workload | T | B | variant | ms | samples/s | share of the floor |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figures = (
            [f"{row['step_ms']:.2f}", f"{row['samples_per_s']:,}", f"{row['floor_share']:.2f}"]
            if "step_ms" in row
            else [row["error"], "", ""]
        )
        about = [row["workload"], str(row["tasks"]), f"{row['batch']:,}", row["variant"]]
        lines.append(f"| {' | '.join([*about, *figures])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
