"""The comparison of models: each searches its own rates, and is tested at its best epoch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logistic import logistic_regression, one_hot
from models_report import contenders, section
from models_search import DENSE_RATES, SETS, TABLE_RATES, DataSet, Training, chosen, wanted
from models_training import train

from stem_torchrec.data.schema import Feature, Schema, Task
from tests.support.prepared import small_data

SET = SETS[0]


def rates(training: Training) -> tuple[float, float]:
    keys = dict(training.settings)
    return keys["embedding.lr"], keys["optim.lr"]


def trained(until: int, of: DataSet = SET) -> tuple[dict[str, Any], list[Training]]:
    """As if trainings ran one by one; the last rates of each list are the best."""
    rows: dict[str, Any] = {}
    order = []
    for _ in range(until):
        following = next(wanted(rows, (of,), ("mmoe", "stem_net"), 2, ("search",)), None)
        if following is None:
            break
        order.append(following)
        auc = 0.5 + 0.01 * rates(following)[0] + rates(following)[1]
        figures = dict.fromkeys(of.tasks, auc)
        test = {"auc_mean": auc, "auc": figures, "ne": figures, "calibration": figures}
        rows[following.key] = {
            **following._asdict(),
            "settings": dict(following.settings),
            "best_epoch": 1,
            "valid_auc_mean": auc,
            "test": test,
        }
    return rows, order


def test_each_model_searches_one_rate_and_then_the_other() -> None:
    rows, order = trained(1000)
    mmoe = [training for training in order if training.model == "mmoe"]
    assert [rates(t)[0] for t in mmoe[:3]] == list(TABLE_RATES)
    best = max(TABLE_RATES)
    assert [rates(t) for t in mmoe[3:5]] == [(best, dense) for dense in DENSE_RATES[1:]]
    assert [(rates(t), t.seed) for t in mmoe[5:]] == [((best, max(DENSE_RATES)), 1)]
    assert len(order) == 12
    found = chosen(rows, SET, "mmoe")
    assert found is not None
    assert rates(found) == (best, max(DENSE_RATES))
    # As many experts as STEM-Net has: one shared, one per task.
    assert dict(found.settings)["model.num_shared_experts"] == 5


def test_what_is_not_complete_is_not_reported() -> None:
    rows, _ = trained(8)
    assert [row["name"] for row in contenders(rows, SET, 2)] == ["mmoe"]
    rows, _ = trained(1000)
    reported = contenders(rows, SET, 2)
    assert [(row["name"], row["seeds"]) for row in reported] == [
        ("stem_net", [0, 1]),
        ("mmoe", [0, 1]),
    ]
    assert "| mmoe | 0.5040 ± 0.0000 |" in section(SET, reported)


def test_a_training_is_a_row_of_its_best_epoch(tmp_path: Path) -> None:
    small_data(tmp_path / "small")
    keys = {"train.epochs": 2, "train.batch_size": 512, "model.name": "single_task"}
    keys |= {"checkpoint.keep_best": "valid/auc_mean", "model.expert_widths": (8,)}
    training = Training("small", "single_task", "search", 0, tuple(keys.items()))
    row = json.loads(json.dumps(train((training, tmp_path))))
    best = max(row["epochs"], key=lambda epoch: (epoch["auc_mean"], epoch["epoch"]))
    assert (row["best_epoch"], row["valid_auc_mean"]) == (best["epoch"], best["auc_mean"])
    assert set(row["test"]["calibration"]) == {"click", "like"}


def test_one_hot_columns(tmp_path: Path) -> None:
    bag = pa.array([[2, 2, 0], [], None], pa.list_(pa.int64()))
    columns = {"user": [1, None, 0], "tags": bag, "price": [0.5, None, 2.0]}
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    features = (
        Feature(name="user", kind="id", num_embeddings=2),
        Feature(name="tags", kind="bag", num_embeddings=3),
        Feature(name="price", kind="dense"),
    )
    schema = Schema(features=features, tasks=(Task(name="click"),))
    expected = [[0, 1, 1 / 3, 0, 2 / 3, 0.5], [1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 2]]
    np.testing.assert_allclose(one_hot(tmp_path, schema).toarray(), expected)


def test_the_strength_is_the_best_on_valid(tmp_path: Path) -> None:
    data = small_data(tmp_path / "small", missing_label_share=(0.0, 0.2))
    found = logistic_regression(data, strengths=(1e-9, 0.1))
    assert found["C"] == max(found["valid_by_C"], key=found["valid_by_C"].get)
    assert found["valid"]["auc_mean"] == pytest.approx(found["valid_by_C"][found["C"]])
    assert found["test"]["auc_mean"] > 0.5
