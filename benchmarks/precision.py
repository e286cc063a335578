"""Test AUC and NE with each precision beside float32, over seeds; the same rows in the same order.

    stem-torchrec prepare kuairand --source SLICE --out prepared/kuairand_slice
    stem-torchrec prepare synthetic --out prepared/synthetic
    python benchmarks/precision.py --kuairand prepared/kuairand_slice \
        --synthetic prepared/synthetic --json FILE

A difference is of runs with the same seed and number of ranks.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from kuairand_slice import stem_net
from provenance import provenance

Row = dict[str, Any]


class Contestant(NamedTuple):
    """One way to train.

    Attributes:
        options: keys over the config's.
        ranks: processes.
        needs_gpu: left out on a CPU.
    """

    name: str
    options: tuple[str, ...] = ()
    ranks: int = 1
    needs_gpu: bool = False


_DENSE, _TABLES = "--train.precision", "--embedding.precision"
_ROWS = ("--distributed.sharding", "row_wise")
CONTESTANTS = (
    Contestant("fp32", (_DENSE, "fp32")),
    Contestant("tf32", (_DENSE, "tf32"), needs_gpu=True),
    Contestant("bf16", (_DENSE, "bf16")),
    Contestant("fp16 tables", (_DENSE, "fp32", _TABLES, "fp16")),
    Contestant("bf16 tables", (_DENSE, "fp32", _TABLES, "bf16"), needs_gpu=True),
    Contestant("bf16, fp16 tables", (_DENSE, "bf16", _TABLES, "fp16")),
    Contestant("fp32, 2 ranks", (_DENSE, "fp32", *_ROWS), ranks=2),
    Contestant(
        "fp16 between 2 ranks",
        (_DENSE, "fp32", *_ROWS, "--distributed.comm_precision", "fp16"),
        ranks=2,
    ),
)


def contestants(names: Sequence[str]) -> list[Contestant]:
    """Those of these names that this machine can train."""
    num_gpus = torch.cuda.device_count()
    return [
        contestant
        for contestant in CONTESTANTS
        if contestant.name in names
        and (num_gpus > 0 or not contestant.needs_gpu)
        and (num_gpus == 0 or contestant.ranks <= num_gpus)
    ]


def rows_of(
    data: str, config: Path, folder: Path, seeds: int, trained: Sequence[Contestant]
) -> list[Row]:
    """One row per contestant and seed."""
    rows = []
    for seed in range(seeds):
        for contestant in trained:
            options = ("--nproc", str(contestant.ranks), *contestant.options)
            row = stem_net(config, folder, seed, options)
            row |= {"data": data, "precision": contestant.name, "ranks": contestant.ranks}
            row["ne_mean"] = mean(row["ne"].values())
            rows.append(row)
            print(json.dumps({key: row[key] for key in ("data", "precision", "seed", "auc_mean")}))
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over seeds, and of the difference to float32."""
    found = []
    for data, name in dict.fromkeys((row["data"], row["precision"]) for row in rows):
        own = [row for row in rows if (row["data"], row["precision"]) == (data, name)]
        line: Row = {"data": data, "precision": name, "seeds": len(own)}
        for metric in ("auc_mean", "ne_mean"):
            values = [row[metric] for row in own]
            differences = [row[metric] - _beside(row, rows)[metric] for row in own]
            line[metric], line[f"{metric}_std"] = mean(values), _spread(values)
            line[f"{metric}_difference"] = mean(differences)
            line[f"{metric}_difference_std"] = _spread(differences)
        found.append(line)
    return found


def _beside(row: Row, rows: Sequence[Row]) -> Row:
    """The float32 run of the same data, seed and ranks."""
    keys = ("data", "seed", "ranks")
    return next(
        other
        for other in rows
        if other["precision"].startswith("fp32") and all(row[key] == other[key] for key in keys)
    )


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kuairand", type=Path, help="prepared slice")
    parser.add_argument("--synthetic", type=Path, help="prepared generated set")
    parser.add_argument("--seeds", type=int, default=3)
    names = [contestant.name for contestant in CONTESTANTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trained, rows = contestants(options.only), []
    for data, file in (("kuairand", "kuairand_slice"), ("synthetic", "synthetic")):
        if (folder := getattr(options, data)) is not None:
            rows += rows_of(data, Path(f"configs/{file}.yaml"), folder, options.seeds, trained)
    result = {"provenance": provenance(), "summary": summary(rows), "rows": rows}
    for line in result["summary"]:
        print(json.dumps(line))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
