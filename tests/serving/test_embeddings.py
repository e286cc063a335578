"""Embeddings as Parquet, and neighbours that are found in them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import stem_torchrec as st
from examples.neighbours import neighbours
from stem_torchrec.cli import main
from tests.support.raw_run import raw_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_run(tmp_path_factory.mktemp("embeddings"))


def export(folder: Path, out: Path, *options: str) -> int:
    return main(["export", "--run", str(folder / "run"), "--out", str(out), *options])


def test_vectors_stand_beside_raw_values(folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path, "--embeddings", "shop,item", "--owner", "all") == 0
    owners = ("shared", "click", "like")
    names = {f"{owner}__{feature}" for owner in owners for feature in ("shop", "item")}
    assert {file.stem for file in tmp_path.glob("*.parquet")} == names
    tables = st.load_run(folder / "run").tables("shop", "item")
    rows = pq.read_table(tmp_path / "like__shop.parquet")
    assert rows.column_names == ["id", "value", "count", "vector"]
    np.testing.assert_array_equal(np.stack(rows["vector"].to_numpy()), tables["like"]["shop"])
    vocabulary = pq.read_table(folder / "data" / "vocab" / "shop.parquet")
    assert rows["value"].to_pylist() == [None, *vocabulary["value"].to_pylist()]
    assert rows["count"].to_pylist() == [None, *vocabulary["count"].to_pylist()]
    hashed = pq.read_table(tmp_path / "shared__item.parquet")
    assert hashed["value"].null_count == hashed.num_rows == 40


def test_the_example_finds_neighbours(folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path, "--embeddings", "shop") == 0
    table = pq.read_table(tmp_path / "shared__shop.parquet").slice(1)
    vectors = np.stack(table["vector"].to_numpy())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    place = table["value"].to_pylist().index("s1")
    best = np.argsort(-(vectors @ vectors[place]))[1:4]
    found = neighbours(tmp_path / "shared__shop.parquet", "s1", 3)
    assert [name for name, _ in found] == [table["value"][int(k)].as_py() for k in best]


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--embeddings", "shopp"], "--embeddings: 'shopp' is not an id or bag feature"),
        (["--embeddings", "shop", "--owner", "lik"], "'lik' has no table of 'shop'"),
    ):
        assert export(folder, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert export(folder, folder, "--embeddings", "shop") == 2
    assert "is there and not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        export(folder, tmp_path / "out", "--embeddings", ",")
    assert "--embeddings: ',' names no feature" in capsys.readouterr().err
