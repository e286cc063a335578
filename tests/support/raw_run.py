"""A run on raw files that were prepared, for tests of what begins with raw values."""

from pathlib import Path

import numpy as np

import stem_torchrec as st
from stem_torchrec.prepare.tables.prepare_files import prepare_files
from tests.prepare.raw_tables import describe, write_text
from tests.support.prepared import small_config

RAW_COLUMNS = ["user", "shop", "tags", "price", "click", "like", "part"]
DESCRIPTION = """
features:
  - {name: user, side: user}
  - {name: shop, side: item}
  - {name: tags, kind: bag, separator: "|", pooling: mean, side: item}
  - {name: item, expression: "user || shop", encoding: hash, num_embeddings: 40, side: item}
  - {name: price, kind: dense}
labels: {click: click, like: like}
split: {by: column, column: part, train: [train], valid: [valid], test: [test]}
min_count: 1
"""
TEST = [["1", "s1", "a|b", "0.5"], ["7", "s2", "", ""], ["99", "never", "b|new", "-1.5"]]


def raw_run(folder: Path) -> Path:
    """``folder`` with ``data`` (prepared), ``run`` (trained), and raw rows without labels:
    ``more_1.csv``, which are those of test, and ``more_2.csv``."""
    rng = np.random.default_rng(0)
    rows = [
        [
            str(rng.integers(1, 30)),
            f"s{rng.integers(1, 9)}",
            "|".join(rng.choice(list("abcd"), rng.integers(0, 4))),
            f"{rng.normal():.3f}",
            *map(str, rng.integers(0, 2, 2)),
            "train" if k < 300 else "valid",
        ]
        for k in range(340)
    ]
    rows += [[*row, str(k % 2), "1", "test"] for k, row in enumerate(TEST)]
    source = write_text(folder / "raw.csv", [RAW_COLUMNS, *rows])
    prepare_files([source], describe(DESCRIPTION), folder / "data")
    small_config(folder / "c.yaml", folder / "data", folder / "run")
    keys = {"train.batch_size": 64, "embedding.dims": {"user": 8, "t*": 12}}
    st.train(folder / "c.yaml", train={"max_steps": 6}, **keys)
    write_text(folder / "more_1.csv", [RAW_COLUMNS[:4], *TEST])
    more = [["", "", "a", "1"], ["3", "s1", "c", "0"]]
    write_text(folder / "more_2.csv", [RAW_COLUMNS[:4], *more])
    return folder
