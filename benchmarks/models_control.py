"""What of a difference to logistic regression, and of a calibration, is chance, and what the days.

    python benchmarks/models_control.py --data DATA/kuairand --out DIR --json FILE

Trains STEM-Net without any key set on a prepared folder split by day, and on one with the same rows
shuffled over the splits (``DIR/shuffled``); one-hot logistic regression beside it, at its best
penalty on valid. By seed the figures of valid and test, and the standard deviation of the
difference in mean AUC on test over bootstrap samples of its rows, and of its groups (users).
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from logistic import column, inputs_and_labels, logistic_regression, logits_of
from models_training import sections
from provenance import provenance
from sklearn.metrics import roc_auc_score

import stem_torchrec as st
from stem_torchrec.data.schema import SCHEMA_FILE, SPLITS, load_schema
from stem_torchrec.runs.records import read_records

Row = dict[str, Any]
Array = np.ndarray[Any, Any]
FIGURES = ("auc_mean", "auc", "ne", "calibration")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=400, help="of the bootstrap")
    parser.add_argument("--epochs", type=int, help="until valid no longer improves if left out")
    options = parser.parse_args(arguments)
    folders = {"by day": options.data, "shuffled": shuffled(options.data, options.out / "shuffled")}
    result: Row = {"epochs": options.epochs, "samples": options.samples}
    for name, data in folders.items():
        result[name] = compared(data, options.out / name.replace(" ", "_"), options)
    result["provenance"] = provenance()
    options.json.write_text(json.dumps(result, indent=1) + "\n")


def shuffled(data: Path, out: Path) -> Path:
    """A folder with the rows of all splits in one order of chance, as many in each as before."""
    schema = load_schema(data)
    columns = [f.name for f in schema.features] + [t.label_column for t in schema.tasks]
    columns += [] if schema.group in (None, *columns) else [schema.group]
    tables = [pq.read_table(data / split, columns=columns) for split in SPLITS]
    rows = pa.concat_tables(tables)
    order = np.random.default_rng(0).permutation(len(rows))
    starts = np.cumsum([0, *map(len, tables)])
    for split, start, end in zip(SPLITS, starts, starts[1:], strict=False):
        (out / split).mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.take(order[start:end]), out / split / "part-0.parquet")
    shutil.copy(data / SCHEMA_FILE, out / SCHEMA_FILE)
    return out


def compared(data: Path, out: Path, options: argparse.Namespace) -> Row:
    """Logistic regression's figures, and by seed STEM-Net's with the spread of the difference."""
    schema = load_schema(data)
    inputs, labels = inputs_and_labels(data, schema, schema.task_names)
    logistic = logistic_regression(data)
    of_logistic = logits_of(inputs, labels["train"], logistic["C"])["test"]
    rows = np.arange(len(of_logistic))
    units = {"rows": rows}
    if schema.group is not None:
        units["groups"] = column(data / "test", schema.group)
    found = []
    for seed in range(options.seeds):
        figures, predicted = trained(data, out / f"seed{seed}", seed, options.epochs)
        pair = (predicted, of_logistic)
        row: Row = {"seed": seed} | figures
        for name, unit in units.items():
            spread = spread_of_difference(pair, labels["test"], unit, options.samples)
            row[f"difference_std_over_{name}"] = spread
        found.append(row)
    return {"logistic": logistic, "stem_net": found}


def trained(data: Path, run_dir: Path, seed: int, epochs: int | None) -> tuple[Row, Array]:
    """The figures of the tested weights on valid and test, and probabilities (rows, T) on test."""
    keys = {"run.dir": str(run_dir), "run.seed": seed, "data.path": str(data)}
    given = {} if epochs is None else {"train.epochs": epochs}
    run = st.train(sections(keys | given), existing="overwrite", nproc=1)
    evaluations = [r for r in read_records(run.config.run.dir) if r["kind"] == "eval"]
    test = evaluations[-1]
    valid = next(r for r in evaluations if r["split"] == "valid" and r["step"] == test["step"])
    table = st.load_run(run_dir, checkpoint=test["step"]).predict("test")
    figures = {r["split"]: {name: r[name] for name in FIGURES} for r in (valid, test)}
    return figures | {"epoch": test["epoch"]}, np.stack([c.to_numpy() for c in table], axis=1)


def spread_of_difference(
    scores: tuple[Array, Array], labels: Array, units: Array, samples: int
) -> float:
    """Standard deviation of the difference in mean AUC of two scorings over bootstrap samples.

    Args:
        scores: (rows, T) each.
        units: (rows,); rows of one unit are drawn together.
    """
    chance = np.random.default_rng(0)
    by_unit = [np.flatnonzero(units == unit) for unit in np.unique(units)]
    differences = []
    for _ in range(samples):
        rows = np.concatenate(
            [by_unit[k] for k in chance.integers(len(by_unit), size=len(by_unit))]
        )
        first, second = (mean_auc(each[rows], labels[rows]) for each in scores)
        differences.append(first - second)
    return float(np.std(differences))


def mean_auc(scores: Array, labels: Array) -> float:
    """Over the tasks, of the labelled rows."""
    seen = ~np.isnan(labels)
    aucs = [
        roc_auc_score(labels[seen[:, task], task], scores[seen[:, task], task])
        for task in range(labels.shape[1])
    ]
    return float(np.mean(aucs))


if __name__ == "__main__":
    main()
