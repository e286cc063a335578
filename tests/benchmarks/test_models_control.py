"""What of a difference is chance: bootstrap samples, and the same rows shuffled over the splits."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models_control import main, mean_auc, spread_of_difference
from sklearn.metrics import roc_auc_score

from tests.support.prepared import small_data


def test_the_control(tmp_path: Path) -> None:
    data, out = small_data(tmp_path / "data"), tmp_path / "out"
    words = ["--data", str(data), "--out", str(out), "--json", str(tmp_path / "found.json")]
    main([*words, "--seeds", "1", "--samples", "5", "--epochs", "1"])

    names = ["user_id", "dense_0", "click"]
    tables = {
        folder: [pq.read_table(folder / split, columns=names) for split in ("train", "test")]
        for folder in (data, out / "shuffled")
    }
    before, after = tables.values()
    assert [len(table) for table in before] == [len(table) for table in after]
    assert not before[0].equals(after[0])
    order = [(name, "ascending") for name in names]
    valid = [pq.read_table(folder / "valid", columns=names) for folder in tables]
    whole = [
        pa.concat_tables([*some, other]).sort_by(order)
        for some, other in zip((before, after), valid, strict=True)
    ]
    assert whole[0].equals(whole[1])

    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("by day", "shuffled"):
        [row] = found[name]["stem_net"]
        assert 0.4 < row["test"]["auc_mean"] < 1
        assert row["difference_std_over_rows"] > 0
        assert set(found[name]["logistic"]["test"]["auc"]) == {"click", "like"}


def test_spread_of_a_difference() -> None:
    chance = np.random.default_rng(1)
    labels = (chance.random((300, 1)) < 0.5).astype(float)
    good, bad = labels + chance.normal(size=(300, 1)), chance.normal(size=(300, 1))
    rows, pairs = np.arange(300), np.arange(300) // 100
    assert spread_of_difference((good, good), labels, rows, 20) == 0
    by_row = spread_of_difference((good, bad), labels, rows, 200)
    # Of an AUC of independent scores the standard deviation is about (12 n / 4)^-0.5 = .033.
    assert by_row == pytest.approx(0.04, abs=0.015)
    together = spread_of_difference((good, bad), labels, np.zeros(300), 20)
    assert together == pytest.approx(0), "all in one unit"
    assert spread_of_difference((good, bad), labels, pairs, 20) > 0


def test_unlabelled_rows_do_not_count() -> None:
    labels = np.array([[0.0, 1], [1, np.nan], [0, 0], [1, 1]])
    scores = np.array([[0.1, 0.2], [0.3, 9], [0.5, 0.1], [0.6, 0.3]])
    expected = (roc_auc_score([0, 1, 0, 1], scores[:, 0]) + 1.0) / 2
    assert mean_auc(scores, labels) == expected
