"""Training speed of balancing rules and boundaries, each beside ``equal`` in the same run.

    python benchmarks/balancers.py --workload tiktok --tasks 2 4 8 --nproc 2 --json FILE

Every rule@boundary is built beside an ``equal`` model in the same processes and the two run in
interleaved rounds. Batches are in memory. Figures of a row: ``ratio`` is the median over rounds of
speed over that of ``equal`` in the same round, ``ratio_range`` the lowest and the highest;
``samples_per_s`` is of all ranks; ``backward_s`` is the median time of the backward;
``added_rss_bytes`` what the resident set of rank 0 grew by, tables included; ``all_reduced_bytes``
what a rank puts into all-reduces other than DDP's per step (the tables' and all-to-all
traffic is not in it). ``fits`` are straight lines through the time a rule adds per step, by tasks.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from balancer_runner import WORKLOADS, Runner, counted_traffic, resident_bytes
from provenance import provenance

from stem_torchrec.launch.launcher import run_workers

Row = dict[str, Any]

CONTESTANTS: tuple[tuple[str, str, int | None], ...] = (
    ("multi_balance", "experts", None),
    ("multi_balance", "pooled", 256),
    ("multi_balance", "pooled", None),
    ("static", "pooled", None),
    ("mgda", "pooled", 256),
    ("mgda", "pooled", None),
    ("pcgrad", "pooled", None),
    ("pcgrad", "experts", None),
    ("cagrad", "experts", None),
    ("uncertainty", "pooled", None),
    ("dwa", "pooled", None),
    ("rlw", "pooled", None),
    ("imtl_l", "pooled", None),
    ("stch", "pooled", None),
    ("famo", "pooled", None),
    ("db_mtl", "experts", None),
    ("upgrad", "experts", None),
    ("imtl_g", "experts", None),
    ("aligned_mtl", "experts", None),
    ("nash_mtl", "experts", None),
    ("fairgrad", "experts", None),
    ("mgda", "dense_parameters", None),
    ("mgda", "parameters", None),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=WORKLOADS, default="tiktok")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of each model in a round")
    parser.add_argument("--only", nargs="+", help="rule@boundary, e.g. multi_balance@experts")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows: list[Row] = []
    for num_tasks in options.tasks:
        for contestant in CONTESTANTS:
            rule, boundary, _ = contestant
            if options.only and f"{rule}@{boundary}" not in options.only:
                continue
            arguments = (options.workload, num_tasks, contestant, options.rounds, options.steps)
            row = run_workers(options.nproc, measure, *arguments)
            rows.append({"workload": options.workload, "ranks": options.nproc} | row)
            print(json.dumps(rows[-1]), flush=True)
            result = {"rows": rows, "fits": fits(rows), "provenance": provenance()}
            options.json.write_text(json.dumps(result, indent=2) + "\n")


def fits(rows: list[Row]) -> list[Row]:
    """Seconds added per step = fixed + per_task * T, by rule and boundary."""
    result = []
    for name in dict.fromkeys((r["rule"], r["boundary"], r["gram_rows"]) for r in rows):
        points = [r for r in rows if (r["rule"], r["boundary"], r["gram_rows"]) == name]
        if len(points) < 2:
            continue
        per_task, fixed = np.polyfit(
            [r["tasks"] for r in points], [r["added_s"] for r in points], 1
        )
        keys = dict(zip(("rule", "boundary", "gram_rows"), name, strict=True))
        result.append(keys | {"fixed_s": fixed, "per_task_s": per_task})
    return result


def measure(
    workload: str, num_tasks: int, contestant: tuple[str, str, int | None], rounds: int, steps: int
) -> Row:
    """On every rank: two models in turns; the row is rank 0's."""
    import torch

    from stem_torchrec.config import DistributedConfig
    from stem_torchrec.distributed.ranks import start_ranks, stop_ranks
    from stem_torchrec.launch.notices import hide_dependency_notices

    hide_dependency_notices()
    torch.set_num_threads(1)
    ranks = start_ranks(DistributedConfig(device="auto"))
    rule, boundary, gram_rows = contestant
    balance = {"rule": rule, "boundary": boundary, "gram_rows": gram_rows}
    if rule == "static":
        balance["weights"] = [1.0] * num_tasks
    with TemporaryDirectory() as folder:
        equal = Runner(ranks, Path(folder) / "a", WORKLOADS[workload], num_tasks, {})
        equal.run(2)
        before = resident_bytes()
        ours = Runner(ranks, Path(folder) / "b", WORKLOADS[workload], num_tasks, balance)
        ours.run(2)
        added = resident_bytes() - before
        with counted_traffic() as traffic:
            equal.run(1)
            base = traffic["bytes"]
            ours.run(1)
            extra = traffic["bytes"] - 2 * base
        pairs = [(equal.run(steps), ours.run(steps)) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    own_s = median(b for _, b in pairs) / steps
    stop_ranks()
    return {
        "rule": rule,
        "boundary": boundary,
        "gram_rows": gram_rows,
        "tasks": num_tasks,
        "batch_size": WORKLOADS[workload].batch_size,
        "device": ranks.device.type,
        "samples_per_s": WORKLOADS[workload].batch_size * ranks.world_size / own_s,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "step_s": own_s,
        "added_s": median(b - a for a, b in pairs) / steps,
        "backward_s": median(ours.backward_s),
        "equal_backward_s": median(equal.backward_s),
        "added_rss_bytes": added,
        "all_reduced_bytes": base + extra,
        "equal_all_reduced_bytes": base,
    }


if __name__ == "__main__":
    main()
