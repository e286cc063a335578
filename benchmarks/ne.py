"""Normalized entropy, log loss and AUC of balancing rules over seeds.

    python benchmarks/ne.py --data synthetic=DIR kuairand=DIR --config synthetic=FILE \
        kuairand=FILE --seeds 3 --speeds benchmarks/results/balancers.json --out DIR

Every run is the ``train`` command on one rank, on the same data and order for every rule; figures
are of the test split. ``static`` stands for the best of a grid of weights by mean NE of the valid
split, so its row cost as many runs as the grid has points, times the seeds. Writes ``ne.json``,
``ne.md`` and ``ne.png`` (speed beside NE change).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ne_report import markdown, plot
from provenance import provenance

from stem_torchrec.config.reading import load_config
from stem_torchrec.runs.schema import selected_schema

Row = dict[str, Any]

RULES: tuple[tuple[str, str], ...] = (
    ("equal", "pooled"),
    ("multi_balance", "pooled"),
    ("mgda", "pooled"),
    ("mgda", "parameters"),
    ("pcgrad", "pooled"),
)
STATIC_LEVELS = (0.5, 2.0)


class Job(NamedTuple):
    data_name: str
    rule: str
    boundary: str
    weights: tuple[float, ...] | None
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=DIR")
    parser.add_argument("--config", nargs="+", default=[], metavar="NAME=FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    parser.add_argument("--speeds", type=Path, help="result of balancers.py, for the plot")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--redraw", action="store_true", help="table and plot of OUT/ne.json again")
    options = parser.parse_args()
    if options.redraw:
        write(json.loads((options.out / "ne.json").read_text()), options)
        return
    folders, configs = (
        dict(pair.split("=", 1) for pair in p) for p in (options.data, options.config)
    )
    jobs = [job for name in folders for job in jobs_of(name, configs[name], folders[name], options)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        runs = list(
            pool.map(
                lambda j: run(j, configs[j.data_name], folders[j.data_name], options.set), jobs
            )
        )
    rows = [row for name in folders for row in summary([r for r in runs if r["data"] == name])]
    write({"rows": rows, "runs": runs, "provenance": provenance()}, options)


def write(result: Row, options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    rows = result["rows"]
    (options.out / "ne.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "ne.md").write_text(markdown(rows, result["provenance"]))
    if options.speeds:
        plot(rows, json.loads(options.speeds.read_text())["rows"], options.out / "ne.png")


def jobs_of(name: str, config: str, folder: str, options: Any) -> list[Job]:
    schema = selected_schema(load_config(Path(config), ["--data.path", folder]))
    grid = [w for w in product(STATIC_LEVELS, repeat=min(2, len(schema.tasks))) if len(set(w)) > 1]
    if len(schema.tasks) > 2:
        # One task up at a time: a full grid would have 2^T points.
        grid = [
            tuple(STATIC_LEVELS[1] if i == up else 1.0 for i in range(len(schema.tasks)))
            for up in range(len(schema.tasks))
        ]
    return [
        *(Job(name, *rule, None, seed) for rule in RULES for seed in range(options.seeds)),
        *(Job(name, "static", "pooled", w, seed) for w in grid for seed in range(options.seeds)),
    ]


def run(job: Job, config: str, folder: str, overrides: Sequence[str]) -> Row:
    """One ``train`` command in a process of its own, on one core."""
    with TemporaryDirectory() as run_dir:
        command = [
            sys.executable,
            "-m",
            "stem_torchrec",
            "train",
            "--config",
            config,
            "--overwrite",
        ]
        command += ["--nproc", "1", "--run.dir", run_dir, "--data.path", folder]
        command += [f"--{override}" for override in overrides]
        command += ["--run.seed", str(job.seed), "--balance.rule", job.rule]
        command += ["--balance.boundary", job.boundary, "--eval.every", "1000000000"]
        if job.weights is not None:
            command += ["--balance.weights", ",".join(map(str, job.weights))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    splits = {r["split"]: r for r in records if r["kind"] == "eval"}
    figures = {name: splits["test"][name] for name in ("ne", "logloss", "auc", "auc_mean")}
    valid_ne = mean(splits["valid"]["ne"].values())
    row = {"data": job.data_name} | job._asdict() | figures | {"valid_ne": valid_ne}
    print(job, f"auc {row['auc_mean']:.4f}", flush=True)
    return row


def summary(runs: list[Row]) -> list[Row]:
    """One row per rule@boundary: mean and standard deviation over seeds, change against equal."""
    kinds = dict.fromkeys((r["rule"], r["boundary"], tuple(r["weights"] or ())) for r in runs)
    by_kind = {
        kind: [r for r in runs if (r["rule"], r["boundary"], tuple(r["weights"] or ())) == kind]
        for kind in kinds
    }
    grid = [kind for kind in kinds if kind[0] == "static"]
    best = min(grid, key=lambda kind: mean(r["valid_ne"] for r in by_kind[kind]), default=None)
    equal = by_kind[("equal", "pooled", ())]
    rows = []
    for kind in [k for k in kinds if k[0] != "static"] + ([best] if best else []):
        own = by_kind[kind]
        row = {"data": own[0]["data"], "rule": kind[0], "boundary": kind[1], "seeds": len(own)}
        row["weights"] = list(kind[2]) or None
        row["grid_runs"] = len(own) * len(grid) if kind[0] == "static" else None
        for name in ("ne", "logloss", "auc"):
            for task in own[0][name]:
                values = [r[name][task] for r in own]
                row.setdefault(name, {})[task] = [mean(values), stdev(values)]
        # Seeds pair up: same initial values and row order.
        changes = [
            mean(a["ne"][t] - b["ne"][t] for t in a["ne"]) for a, b in zip(own, equal, strict=True)
        ]
        row["ne_change"] = [mean(changes), stdev(changes)]
        row["auc_mean"] = [mean(r["auc_mean"] for r in own), stdev(r["auc_mean"] for r in own)]
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
