"""Train, evaluate and predict from a script, on prepared random data.

python examples/train_and_predict.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stem_torchrec as st

FEATURES = [
    {"name": "user_id", "kind": "id", "side": "user", "num_embeddings": 101},
    {"name": "item_id", "kind": "id", "side": "item", "num_embeddings": 51},
]


def prepare(folder: Path) -> None:
    """Users of even number click, and like the items of even number."""
    rng = np.random.default_rng(0)
    for split, rows in {"train": 4000, "valid": 500, "test": 500}.items():
        (folder / split).mkdir(parents=True)
        users, items = rng.integers(1, 101, rows), rng.integers(1, 51, rows)
        click = rng.random(rows) < np.where(users % 2, 0.2, 0.8)
        like = rng.random(rows) < np.where((users + items) % 2, 0.2, 0.8)
        columns = {"user_id": users, "item_id": items, "click": click * 1, "like": like * 1}
        pq.write_table(pa.table(columns), folder / split / "part-0.parquet")
    schema = {"features": FEATURES, "tasks": [{"name": "click"}, {"name": "like"}]}
    (folder / "schema.json").write_text(json.dumps(schema))


def main(folder: Path) -> dict[str, float]:
    """The AUC of each task on the test split."""
    prepare(folder / "prepared")
    run = st.train(
        {"run": {"dir": folder / "run"}, "data": {"path": folder / "prepared"}},
        model={"expert_widths": [32], "gate_widths": [16], "tower_widths": [16]},
        embedding={"dim": 8, "lr": 0.1},
        train={"batch_size": 256, "epochs": 5},
        checkpoint={"keep_best": "valid/auc_mean"},
    )
    best = st.load_run(folder / "run", checkpoint="best")
    print(f"last {run}, best {best}")
    print(best.predict("test").slice(0, 3).to_pylist())
    return best.evaluate("test")["auc"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(main(Path(temporary)))
