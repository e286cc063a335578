"""One-hot logistic regression on a prepared folder, by scikit-learn: what any network should beat.

    python benchmarks/logistic.py DATA_SET...

One regression per task on all columns: an id is one of its values, a bag the share of each of its
values, a dense feature is standardised. One strength C for all tasks, the best mean AUC on valid.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from stem_torchrec.data.schema import SPLITS, Feature, Schema, load_schema
from stem_torchrec.training.evaluation import Joined, evaluation

Row = dict[str, Any]

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""scikit-learn's C: the inverse of the L2 penalty."""


def logistic_regression(
    data: Path, tasks: Sequence[str] | None = None, strengths: Sequence[float] = STRENGTHS
) -> Row:
    """Figures on valid and test at the strength that is best on valid."""
    schema = load_schema(data)
    tasks = tasks or schema.task_names
    inputs, labels = inputs_and_labels(data, schema, tasks)
    found = [{"C": strength} | _figures(inputs, labels, tasks, strength) for strength in strengths]
    best = max(found, key=lambda row: row["valid"]["auc_mean"])
    return best | {"valid_by_C": {row["C"]: row["valid"]["auc_mean"] for row in found}}


def inputs_and_labels(data: Path, schema: Schema, tasks: Sequence[str]) -> tuple[Row, Row]:
    """Of each split the one-hot columns, and the labels (rows, T), NaN for null."""
    inputs = {split: one_hot(data / split, schema) for split in SPLITS}
    labels = {
        split: np.stack([column(data / split, task) for task in tasks], axis=1) for split in SPLITS
    }
    return inputs, labels


def one_hot(folder: Path, schema: Schema) -> sparse.csr_matrix:
    """(rows, columns of all features side by side)."""
    return sparse.hstack([_columns(folder, feature) for feature in schema.features], format="csr")


def _columns(folder: Path, feature: Feature) -> sparse.csr_matrix:
    column = pq.read_table(folder, columns=[feature.name])[feature.name].combine_chunks()
    if feature.kind == "dense":
        values = np.nan_to_num(column.to_numpy(zero_copy_only=False).astype(np.float64))
        return sparse.csr_matrix(values[:, None])
    if feature.kind == "id":
        ids = column.fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.arange(len(ids) + 1)
    else:
        lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = column.flatten().fill_null(0).to_numpy(zero_copy_only=False)
    shares = np.repeat(1 / np.maximum(np.diff(offsets), 1), np.diff(offsets))
    return sparse.csr_matrix((shares, ids, offsets), shape=(len(column), feature.num_embeddings))


def column(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """(rows,) of a split, NaN for null."""
    return pq.read_table(folder, columns=[name])[name].to_numpy().astype(np.float64)


def _figures(inputs: Row, labels: Row, tasks: Sequence[str], strength: float) -> Row:
    logits = logits_of(inputs, labels["train"], strength)
    return {split: _evaluated(tasks, logits[split], labels[split]) for split in logits}


def logits_of(inputs: Row, train_labels: Any, strength: float) -> dict[str, Any]:
    """(rows, T) logits of valid and test, each task fitted to its train labels (rows, T)."""
    logits: dict[str, list[np.ndarray[Any, Any]]] = {"valid": [], "test": []}
    for index in range(train_labels.shape[1]):
        of_task, seen = train_labels[:, index], ~np.isnan(train_labels[:, index])
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(inputs["train"][seen], of_task[seen])
        for split, columns in logits.items():
            columns.append(model.decision_function(inputs[split]))
    return {split: np.stack(columns, axis=1) for split, columns in logits.items()}


def _evaluated(tasks: Sequence[str], logits: Any, labels: Any) -> Row:
    observed = ~np.isnan(labels)
    joined = Joined(logits, np.nan_to_num(labels), observed.astype(np.float64), None)
    figures = evaluation(tasks, joined)
    return {n: figures[n] for n in ("auc_mean", "auc", "ne", "logloss", "calibration")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="+", help="prepared folders")
    for data in parser.parse_args().data:
        print(json.dumps({"data": data.name} | logistic_regression(data)))


if __name__ == "__main__":
    main()
