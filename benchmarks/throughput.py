"""Samples per second of the trainer's step, beside plain PyTorch and the bare matrix products.

    python benchmarks/throughput.py --json FILE [--names PATTERN] [--threads N] [--rounds N]

The workload is TikTok-shaped: 8 id features, 2 tasks, one shared expert and one per task. Compared
in one run, in interleaved rounds, each in a process of its own:

- ``trainer ...``: the trainer's loop body (learning rates, pipelined step, metrics), data from the
  Parquet reader; one row per table optimizer.
- ``plain``: ``plain_stem_net.py``, dense Adam and L2 over whole tables, batches already in memory:
  its data cost is nil. ``plain, memory kept``: the same with the trainer's setting of the C
  allocator, which reuses freed memory.
- ``tables ...``: the tables alone: lookup, pooled features by owner, and their gradients back.
- ``... fused``: ``embedding.layout: fused``; the others have separate tables.
- ``..., 8 tasks``: data of the same features with eight tasks instead of two.
- ``..., small data``: 23 features of few ids, four tasks, 512 rows a step and experts of 64-32: 115
  separate tables, where what a step costs beside its products counts.
- ``floor``: the matrix products of a step alone.

Figures of a row: ``samples_per_s`` is the median over rounds, ``samples_per_s_range`` the slowest
and the fastest round. ``ratio_to_plain`` (speed over that of ``plain`` with the same tables),
``share_of_floor`` (the floor's time over the own), ``ratio_to_separate`` (speed over that of the
same with separate tables) and ``ratio_to_small_tables`` (speed over the same contestant's with the
smallest tables) are medians of ratios within a round. ``plain`` with
large tables runs alone, after the others, for the memory it needs; ``ratio_paired`` is false where
a ratio compares medians of different rounds. ``busy_cores`` is processor time over time: well below
``threads``, the machine had other work to do and the figures are no results. ``table_rows`` are the
rows of one owner's tables.
"""

import argparse
import json
import os
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

from children import Timing, timings
from contestants import Contestant
from provenance import provenance
from workload import SMALL_DATA, VOCABULARIES, Workload, scaled

Row = dict[str, Any]

LARGE_TABLE_ROWS = 20_000_000
TRAIN_STEPS = 512
ROUNDS_ALONE = 3
MANY_TASKS = 8
ADAGRAD = {"embedding": {"optimizer": "adagrad"}}
FUSED = {"embedding": {"layout": "fused"}}


def contestants(
    small: Workload, many_tasks: Workload, small_data: Workload, large: Workload
) -> list[Contestant]:
    """All that is measured; those to run alone last."""
    tasks = f", {many_tasks.num_tasks} tasks"
    return [
        Contestant("floor", "floor", small),
        Contestant("plain", "plain", small),
        Contestant("plain, memory kept", "plain_keeping_memory", small),
        Contestant("trainer rowwise_adagrad", "trainer", small),
        Contestant("trainer rowwise_adagrad fused", "trainer", small, FUSED),
        Contestant("trainer adagrad", "trainer", small, ADAGRAD),
        Contestant("tables", "tables", small),
        Contestant("tables fused", "tables", small, FUSED),
        Contestant(f"trainer rowwise_adagrad{tasks}", "trainer", many_tasks),
        Contestant(f"trainer rowwise_adagrad fused{tasks}", "trainer", many_tasks, FUSED),
        Contestant(f"tables{tasks}", "tables", many_tasks),
        Contestant(f"tables fused{tasks}", "tables", many_tasks, FUSED),
        Contestant("plain, small data", "plain", small_data),
        Contestant("trainer rowwise_adagrad, small data", "trainer", small_data),
        Contestant("trainer rowwise_adagrad fused, small data", "trainer", small_data, FUSED),
        Contestant("trainer rowwise_adagrad", "trainer", large),
        Contestant("plain", "plain", large, alone=True),
    ]


def measure(
    wanted: list[Contestant], *, threads: int, rounds: int, steps: int, warmup_steps: int
) -> list[Timing]:
    """All timings for one number of threads; what runs alone makes a few single steps."""
    together = [contestant for contestant in wanted if not contestant.alone]
    results = timings(
        together, threads=threads, rounds=rounds, steps=steps, warmup_steps=warmup_steps
    )
    for contestant in wanted:
        if contestant.alone:
            few = min(rounds, ROUNDS_ALONE)
            results += timings([contestant], threads=threads, rounds=few, steps=1, warmup_steps=1)
    return results


def rows_of(results: list[Timing], threads: int) -> list[Row]:
    """One row per timing, with its ratios to the others; of a name's timings the small is first."""
    small: dict[str, Timing] = {}
    plain: dict[Workload, Timing] = {}
    for result in results:
        small.setdefault(result.contestant.name, result)
        if result.contestant.kind == "plain":
            plain[result.contestant.workload] = result
    return [_row(result, small, plain, threads) for result in results]


def _row(
    result: Timing, small: dict[str, Timing], plain: dict[Workload, Timing], threads: int
) -> Row:
    contestant, workload = result.contestant, result.contestant.workload
    row: Row = {
        "name": contestant.name,
        "table_rows": workload.table_rows,
        "tasks": workload.num_tasks,
        "threads": threads,
        "batch_size": workload.batch_size,
        "peak_rss_bytes": result.peak_rss_bytes,
        "sharding": result.sharding,
        "failure": result.failure,
    }
    if not result.seconds:
        return row | {"samples_per_s": None}
    speeds = [workload.batch_size / seconds for seconds in result.seconds]
    baseline = plain.get(workload) if contestant.kind == "trainer" else None
    floor = small.get("floor") if contestant.kind != "tables" else None
    if floor is not None and floor.contestant.workload.num_tasks != workload.num_tasks:
        floor = None
    is_fused = " fused" in contestant.name
    separate = small.get(contestant.name.replace(" fused", "")) if is_fused else None
    return row | {
        "rounds": len(speeds),
        "samples_per_s": round(median(speeds)),
        "samples_per_s_range": [round(min(speeds)), round(max(speeds))],
        "busy_cores": round(median(result.busy_cores), 2),
        "ratio_to_plain": _speed_ratio(result, baseline),
        "ratio_paired": baseline is not None and not baseline.contestant.alone,
        "share_of_floor": _speed_ratio(result, floor),
        "ratio_to_separate": _speed_ratio(result, separate),
        "ratio_to_small_tables": _speed_ratio(result, small[contestant.name]),
    }


def _speed_ratio(own: Timing, base: Timing | None) -> float | None:
    """Speed of ``own`` over that of ``base``; of medians where they did not run in one round."""
    if base is None or not base.seconds:
        return None
    if own.contestant.alone or base.contestant.alone:
        return round(median(base.seconds) / median(own.seconds), 3)
    return round(median(b / o for b, o in zip(base.seconds, own.seconds, strict=True)), 3)


def workloads(workdir: Path, *, smoke: bool) -> tuple[Workload, Workload, Workload, Workload]:
    """With small tables, with many tasks, of small data, and with large tables; without their
    data."""
    if smoke:
        vocabularies, large_rows = (60, 80, 9, 9, 40, 20, 8, 5), 4_000
        small = Workload(workdir / "smoke-small", vocabularies, 64, 4, (16, 8), (8, 4))
    else:
        large_rows = LARGE_TABLE_ROWS
        small = Workload(workdir / "small", VOCABULARIES)
    small_data = Workload(
        small.path.with_name(f"{small.path.name}-data"),
        SMALL_DATA,
        batch_size=min(512, small.batch_size),
        dim=small.dim,
        expert_widths=(16, 8) if smoke else (64, 32),
        hidden_widths=(8,) if smoke else (32,),
        num_tasks=4,
        side_features=(10, 10),
    )
    many_tasks = replace(
        small, path=small.path.with_name(f"{small.path.name}-tasks"), num_tasks=MANY_TASKS
    )
    large_vocabularies = scaled(small.vocabularies, large_rows)
    large_path = small.path.with_name(small.path.name.replace("small", "large"))
    large = replace(small, path=large_path, vocabularies=large_vocabularies)
    return small, many_tasks, small_data, large


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--workdir", type=Path, required=True, help="keeps the prepared data")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="numbers of threads; null: all cores, and 1"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=6, help="of each contestant in a round")
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", help="kinds of contestants; all if left out")
    parser.add_argument(
        "--names", nargs="+", default=["*"], help="patterns of contestants' names (* matches)"
    )
    parser.add_argument("--max-rows", type=int, help="leave out tables with more, per owner")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    wanted = [
        contestant
        for contestant in contestants(*workloads(options.workdir, smoke=options.smoke))
        if options.kinds is None or contestant.kind in options.kinds
        if any(fnmatch(contestant.name, pattern) for pattern in options.names)
        if options.max_rows is None or contestant.workload.table_rows <= options.max_rows
    ]
    for workload in dict.fromkeys(contestant.workload for contestant in wanted):
        workload.prepare(workload.batch_size * (8 if options.smoke else TRAIN_STEPS))
    rows: list[Row] = []
    for threads in options.threads or sorted({len(os.sched_getaffinity(0)), 1}, reverse=True):
        results = measure(
            wanted,
            threads=threads,
            rounds=options.rounds,
            steps=options.steps,
            warmup_steps=options.warmup_steps,
        )
        rows += rows_of(results, threads)
        # After each number of threads, so that a long run leaves what it has.
        result = {"rows": rows, "provenance": provenance()}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    _show(rows)


def _show(rows: list[Row]) -> None:
    for row in rows:
        speed = row["samples_per_s"] or row["failure"]
        ratios = " ".join(
            f"{key} {row.get(key)}"
            for key in ("ratio_to_plain", "share_of_floor", "ratio_to_separate")
        )
        print(
            f"{row['name']:<36} {row['table_rows']:>12,} rows {row['threads']} threads "
            f"{speed!s:>8} samples/s {row['peak_rss_bytes'] / 2**30:6.2f} GiB  {ratios}"
        )


if __name__ == "__main__":
    main()
