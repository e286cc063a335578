"""Samples per second of the trainer's step, beside plain PyTorch and the bare matrix products.

    python benchmarks/throughput.py --json FILE [--threads N] [--rounds N] [--steps N]

The workload is TikTok-shaped: 8 id features, 2 tasks, one shared expert and one per task. Compared
in one run, in interleaved rounds, each in a process of its own:

- ``trainer ...``: the trainer's loop body (learning rates, pipelined step, metrics), data from the
  Parquet reader; one row per table optimizer and sharding.
- ``plain``: ``plain_stem_net.py``, dense Adam and L2 over whole tables, batches already in memory:
  its data cost is nil.
- ``floor``: the matrix products of a step alone.

Figures of a row: ``samples_per_s`` is the median over rounds, ``samples_per_s_range`` the slowest
and the fastest round. ``ratio_to_plain`` (speed over that of ``plain`` with the same tables),
``share_of_floor`` (the floor's time over the own) and ``ratio_to_small_tables`` (speed over the
same contestant's with the smallest tables) are medians of ratios within a round. ``plain`` with
large tables runs alone, after the others, for the memory it needs; ``ratio_paired`` is false where
a ratio compares medians of different rounds. ``table_rows`` are the rows of one owner's tables.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from children import Timing, timings
from contestants import Contestant
from provenance import provenance
from workload import VOCABULARIES, Workload, scaled

Row = dict[str, Any]

LARGE_TABLE_ROWS = 20_000_000
FEW_STEPS = 3
MEMORY_LEFT_BYTES = 1 << 30
TRAINERS: dict[str, dict[str, dict[str, Any]]] = {
    "trainer rowwise_adagrad": {},
    "trainer adagrad": {"embedding": {"optimizer": "adagrad"}},
    "trainer rowwise_adagrad table_wise": {"distributed": {"sharding": "table_wise"}},
}
TRAINERS_OF_LARGE_TABLES = ("trainer rowwise_adagrad", "trainer adagrad")


def contestants(small: Workload, large: Workload) -> list[Contestant]:
    """All that fit beside each other in memory."""
    return [
        Contestant("floor", "floor", small),
        Contestant("plain", "plain", small),
        *(Contestant(name, "trainer", small, keys) for name, keys in TRAINERS.items()),
        *(
            Contestant(name, "trainer", large, TRAINERS[name]) for name in TRAINERS_OF_LARGE_TABLES
        ),
    ]


def rows_of(results: list[Timing], threads: int) -> list[Row]:
    """One row per contestant, with its ratios to the others; the first with a name is the small."""
    small: dict[str, Timing] = {}
    plain: dict[int, Timing] = {}
    for result in results:
        small.setdefault(result.contestant.name, result)
        if result.contestant.kind == "plain":
            plain[result.contestant.workload.table_rows] = result
    return [_row(result, small, plain, threads) for result in results]


def _row(
    result: Timing, small: dict[str, Timing], plain: dict[int, Timing], threads: int
) -> Row:
    contestant, workload = result.contestant, result.contestant.workload
    row: Row = {
        "name": contestant.name,
        "table_rows": workload.table_rows,
        "threads": threads,
        "batch_size": workload.batch_size,
        "peak_rss_bytes": result.peak_rss_bytes,
        "sharding": result.sharding,
        "failure": result.failure,
    }
    if not result.seconds:
        return row | {"samples_per_s": None}
    speeds = [workload.batch_size / seconds for seconds in result.seconds]
    baseline = plain.get(workload.table_rows) if contestant.kind == "trainer" else None
    return row | {
        "rounds": len(speeds),
        "samples_per_s": round(median(speeds)),
        "samples_per_s_range": [round(min(speeds)), round(max(speeds))],
        "ratio_to_plain": _ratio(baseline, result),
        "ratio_paired": baseline is None or _paired(baseline, result),
        "share_of_floor": _ratio(small.get("floor"), result),
        "ratio_to_small_tables": _ratio(small[contestant.name], result),
    }


def _paired(one: Timing, other: Timing) -> bool:
    return len(one.seconds) == len(other.seconds)


def _ratio(base: Timing | None, own: Timing) -> float | None:
    """Speed of ``own`` over that of ``base``."""
    if base is None or not base.seconds:
        return None
    if not _paired(base, own):
        return round(median(base.seconds) / median(own.seconds), 3)
    return round(median(b / o for b, o in zip(base.seconds, own.seconds, strict=True)), 3)


def measure(small: Workload, large: Workload, threads: int, rounds: int, steps: int) -> list[Row]:
    """All rows for one number of threads."""
    results = timings(
        contestants(small, large), threads=threads, rounds=rounds, steps=steps, warmup_steps=3
    )
    limit = _available_memory_bytes() - MEMORY_LEFT_BYTES
    alone = Contestant("plain", "plain", large, memory_limit_bytes=limit)
    few = min(steps, FEW_STEPS)
    # One round less at most, so that no one takes its ratios for paired ones.
    results += timings(
        [alone], threads=threads, rounds=max(1, min(rounds, FEW_STEPS) - 1), steps=few, warmup_steps=1
    )
    return rows_of(results, threads)


def _available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--workdir", type=Path, required=True, help="keeps the prepared data")
