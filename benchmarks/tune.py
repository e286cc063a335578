"""What a search has found, with other seeds than its own: the config beside the best one.

    stem-torchrec tune --config configs/kuairand_slice.yaml --trials 20 \
        --space configs/spaces/kuairand_slice.yaml --out runs/tuned
    python benchmarks/tune.py --config configs/kuairand_slice.yaml --study runs/tuned --json FILE
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from provenance import provenance

from stem_torchrec.cli import main as command
from stem_torchrec.runs.records import read_records

Row = dict[str, Any]


def trained(config: Path, seed: int, data: list[str]) -> Row:
    """Mean AUC of the valid and the test split after one run of the ``train`` command."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        options = ["--run.dir", str(run_dir), "--run.seed", str(seed), *data]
        if command(["train", "--config", str(config), *options]) != 0:
            raise SystemExit(f"seed {seed} failed")
        records = [record for record in read_records(run_dir) if record["kind"] == "eval"]
    by_split = {record["split"]: record["auc_mean"] for record in records}
    return {"seed": seed, "valid": by_split["valid"], "test": by_split["test"]}


def over_seeds(name: str, rows: list[Row]) -> Row:
    found: Row = {"config": name, "runs": rows}
    for split in ("valid", "test"):
        values = [row[split] for row in rows]
        found[split] = {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--study", type=Path, required=True, help="the search's --out")
    parser.add_argument("--data", help="data.path of both (default: that of each config)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = ["--data.path", options.data] if options.data else []
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    configs = {"config": options.config, "best": options.study / "best.yaml"}
    rows: dict[str, list[Row]] = {name: [] for name in configs}
    for seed in seeds:
        for name, file in configs.items():
            rows[name].append(trained(file, seed, data))
    page = json.loads((options.study / "tune.json").read_text())
    kept = ("metric", "best", "own", "importance", "space", "trials")
    found = {
        "search": {name: page[name] for name in kept},
        "other_seeds": [over_seeds(name, of_name) for name, of_name in rows.items()],
        "provenance": provenance(),
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
