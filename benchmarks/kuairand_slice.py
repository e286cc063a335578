"""Test AUC of STEM-Net on the KuaiRand slice over seeds, beside one-hot logistic regression.

Both are trained on the train split alone, on the same prepared features.

    stem-torchrec prepare kuairand --source SLICE --out prepared/kuairand_slice
    python benchmarks/kuairand_slice.py --data prepared/kuairand_slice --json FILE
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from provenance import provenance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from stem_torchrec.cli import main as command
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.schema import load_schema

Row = dict[str, Any]


def stem_net(config: Path, data: Path, seed: int, more: Sequence[str] = ()) -> Row:
    """One run of the ``train`` command, with ``more`` options."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        options = ["--run.dir", str(run_dir), "--run.seed", str(seed), "--data.path", str(data)]
        if command(["train", "--config", str(config), *options, *more]) != 0:
            raise SystemExit(f"seed {seed} failed")
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    test = json.loads(lines[-1])
    return {"model": "stem_net", "seed": seed} | {
        name: test[name] for name in ("step", "samples", "auc", "auc_mean", "ne", "logloss")
    }


def logistic_regression(data: Path, tasks: list[str], strength: float) -> Row:
    """One-hot logistic regression per task on the id features; ``strength`` is sklearn's C."""
    names = [f.name for f in load_schema(data).sparse if f.kind == "id"]
    train, test = (pq.read_table(data / split) for split in ("train", "test"))
    columns = [np.stack([part[name].to_numpy() for name in names], 1) for part in (train, test)]
    encoder = OneHotEncoder(handle_unknown="ignore").fit(columns[0])
    inputs, test_inputs = (encoder.transform(part) for part in columns)
    auc = {}
    for task in tasks:
        fitted = LogisticRegression(C=strength, max_iter=500).fit(inputs, train[task].to_numpy())
        scores = fitted.decision_function(test_inputs)
        auc[task] = float(roc_auc_score(test[task].to_numpy(), scores))
    return {
        "model": "logistic_regression",
        "C": strength,
        "auc": auc,
        "auc_mean": mean(auc.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, default=Path("configs/kuairand_slice.yaml"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [stem_net(options.config, options.data, seed) for seed in range(options.seeds)]
    tasks = list(load_config(options.config).tasks.names or rows[0]["auc"])
    aucs = [row["auc_mean"] for row in rows]
    summary = {
        "model": "stem_net",
        "seeds": options.seeds,
        "auc": {task: mean(row["auc"][task] for row in rows) for task in tasks},
        "auc_mean": mean(aucs),
        "auc_mean_std": stdev(aucs) if len(aucs) > 1 else 0.0,
    }
    baseline = [logistic_regression(options.data, tasks, strength) for strength in (0.03, 0.1, 0.3)]
    result = {"provenance": provenance(), "summary": summary, "rows": [*rows, *baseline]}
    for row in (summary, *baseline):
        print(json.dumps(row))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
