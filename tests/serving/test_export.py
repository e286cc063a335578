"""An export predicts as its run does, without TorchRec, from files that are checked."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

import stem_torchrec as st
from stem_torchrec.cli import main
from stem_torchrec.errors import UserError
from stem_torchrec.serving import Predictor
from stem_torchrec.serving.manifest import write_manifest
from stem_torchrec.serving.safetensors import create_tensors, open_tensors
from stem_torchrec.serving.tables import Table, reduce_table
from tests.support.prepared import small_config, small_data
from tests.support.raw_run import raw_run


def export(run: Path, out: Path, *options: str) -> int:
    return main(["export", "--run", str(run), "--out", str(out), *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on raw rows, and its export as fp32."""
    folder = raw_run(tmp_path_factory.mktemp("export"))
    assert export(folder / "run", folder / "fp32") == 0
    return folder


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder / "fp32")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "fp32", tmp_path / "copied"))


def raw_rows(folder: Path) -> pa.Table:
    return csv.read_csv(folder / "more_1.csv")


def notes(out: Path) -> dict:
    return json.loads((out / "export.json").read_text())["notes"]


def test_raw_rows_have_the_runs_probabilities(folder: Path, predictor: Predictor) -> None:
    assert predictor.inputs == ("user", "shop", "tags", "price")
    expected = st.load_run(folder / "run").predict("test")
    table = raw_rows(folder)
    for rows in (table, table.to_pylist(), table.to_pandas(), table.to_batches()[0]):
        found = predictor.predict(rows)
        assert found.column_names == ["click", "like"]
        for task in found.column_names:
            np.testing.assert_allclose(found[task], expected[task], atol=1e-6)
    assert predictor.predict(table.slice(1, 1))["like"][0].as_py() == pytest.approx(
        expected["like"][1].as_py(), abs=1e-6
    )
    assert predictor.predict([]).num_rows == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("export") / "data")


def test_metrics_are_the_runs_at_fp32_and_near_them_below(
    folder: Path, predictor: Predictor, tmp_path: Path
) -> None:
    sizes = [notes(folder / "fp32")["bytes"]["tables"]]
    for precision in ("fp16", "int8"):
        assert export(folder / "run", tmp_path / precision, "--tables", precision) == 0
        sizes.append(notes(tmp_path / precision)["bytes"]["tables"])
    assert max(sizes[1:]) < sizes[0]
    run, ours = (notes(folder / "fp32")["metrics"][of]["ne"]["click"] for of in ("run", "export"))
    assert ours == pytest.approx(run, abs=1e-6)
    expected = predictor.predict(raw_rows(folder))
    found = Predictor(tmp_path / "int8").predict(raw_rows(folder))
    np.testing.assert_allclose(found["click"], expected["click"], atol=5e-3)
    assert not found.equals(expected)


def test_a_table_is_written_by_the_row(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1000, 7)).astype(np.float32)
    values[3] = 0
    for precision, bound in (("fp32", 0), ("fp16", 2e-3), ("int8", np.abs(values).max() / 254)):
        file = tmp_path / f"{precision}.safetensors"
        create_tensors(file, {"values": ("F32", (1000, 7))})["values"][:] = values
        reduce_table(file, precision)
        found = Table(file, 1000, 7).all_rows(0, 1000)
        assert np.abs(found - values).max() <= bound * 1.01
        assert not found[3].any()


def test_the_format_is_that_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    made = create_tensors(file, {"a": ("F32", (2, 3)), "b": ("I8", (4,))})
    made["a"][:] = np.arange(6).reshape(2, 3)
    made["b"][:] = 7
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header["a"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert content[8 + length + 24 :] == bytes([7] * 4)
    assert open_tensors(file)["a"][1, 2] == 5


def test_loading_imports_neither_torchrec_nor_pydantic(folder: Path) -> None:
    code = (
        "import json, sys; from stem_torchrec.serving import Predictor; "
        f"p = Predictor({str(folder / 'fp32')!r}); p.predict([{{n: None for n in p.inputs}}]); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in json.loads(out.stdout)}
    assert {"torch", "pyarrow", "duckdb"} <= loaded
    unwanted = {"torchrec", "fbgemm_gpu", "pydantic", "yaml", "rich", "tensorboard", "safetensors"}
    assert loaded & unwanted == set()


def test_nothing_is_a_pickle(folder: Path) -> None:
    files = [file for file in (folder / "fp32").rglob("*") if file.is_file()]
    assert len(files) > 10
    for file in files:
        head = file.read_bytes()[:2]
        assert not head.startswith(b"\x80"), file
        if file.suffix != ".pt2":
            assert head != b"PK", file
            continue
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                assert archive.read(name)[:2] not in (b"PK", b"\x80\x02"), name


def test_what_was_never_seen_and_what_is_missing(predictor: Predictor) -> None:
    nothing = predictor.predict([{"user": None, "shop": None, "tags": None, "price": None}])
    strange = {"user": "12345", "shop": "seen", "tags": "new|newer", "price": float("nan")}
    assert predictor.predict([strange]).num_rows == nothing.num_rows == 1
    only_empty = predictor.predict(pa.table({name: pa.nulls(2) for name in predictor.inputs}))
    assert only_empty["click"].to_pylist() == [nothing["click"][0].as_py()] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"user": 1, "shop": "s1", "tags": ""}], "column 'price' is missing"),
        ([{"user": 1, "shop": "s", "tags": "", "price": "much"}], "price.*much"),
        ([{"user": [1], "shop": "s", "tags": "", "price": 1}], "column 'user': list<item: int64>;"),
        ([{"price": 1}, {"price": "a"}], "column 'price': its values are not of one type"),
        (7, "rows: a int; give a pyarrow.Table"),
        ([7], "row 0 is a int"),
    ],
)
def test_wrong_rows_are_named(predictor: Predictor, rows: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict(rows)


def test_unknown_columns_are_named_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = Predictor(folder / "fp32")
    rows = [dict.fromkeys([*predictor.inputs, "colour"])]
    predictor.predict(rows)
    predictor.predict(rows)
    assert [r.getMessage() for r in caplog.records] == [
        "columns that no feature reads are ignored: colour"
    ]


def test_threads_share_it(folder: Path, predictor: Predictor) -> None:
    table = raw_rows(folder)
    expected, found = predictor.predict(table), []

    def ask() -> None:
        found.extend(predictor.predict(table) for _ in range(5))

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(table.equals(expected) for table in found)


@pytest.mark.parametrize(("layout", "precision"), [("separate", "fp32"), ("fused", "fp16")])
def test_without_an_encoder_rows_are_ids(
    layout: str, precision: str, data: Path, tmp_path: Path
) -> None:
    config = small_config(tmp_path / "c.yaml", data, tmp_path / "run")
    tables = {"embedding.layout": layout, "embedding.precision": precision}
    st.train(config, train={"max_steps": 2}, **tables)
    assert export(tmp_path / "run", tmp_path / "out", "--data.path", str(tmp_path / "gone")) == 0
    assert "metrics" not in notes(tmp_path / "out")
    predictor = Predictor(tmp_path / "out")
    test = pq.read_table(data / "test")
    expected = st.load_run(tmp_path / "run").predict("test")
    np.testing.assert_allclose(predictor.predict(test)["like"], expected["like"], atol=1e-6)
    row = test.slice(0, 1).to_pylist()[0]
    for wrong, message in (
        ({"user_id": 99}, "feature 'user_id' has id 99; allowed: 0 to 50"),
        ({"user_id": "a"}, "'user_id' has type string"),
        ({"dense_0": float("inf")}, "dense feature 'dense_0' has value inf"),
        ({"bag_0": 3}, "'bag_0' has type int64; a bag is a list"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.predict([row | wrong])


@pytest.mark.slow
def test_two_ranks_write_their_shards(folder: Path, tmp_path: Path) -> None:
    options = ["--nproc", "2", "--distributed.sharding", "row_wise"]
    assert export(folder / "run", tmp_path / "out", *options) == 0
    for file in (folder / "fp32" / "tables").iterdir():
        assert (tmp_path / "out" / "tables" / file.name).read_bytes() == file.read_bytes()


def _other_version(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(content | {"format": 9}))


def _outside(folder: Path) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["../fp32/export.json"] = {"bytes": 1, "sha256": ""}
    (folder / "manifest.json").write_text(json.dumps(content))


def _damaged_table(folder: Path) -> None:
    file = next((folder / "tables").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _missing_table(folder: Path) -> None:
    next((folder / "tables").iterdir()).unlink()


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _other_tables(folder: Path) -> None:
    for file in (folder / "tables").iterdir():
        for values in open_tensors(file, writable=True).values():
            values[:] = 1
    write_manifest(folder)


def _a_pickle(folder: Path) -> None:
    with zipfile.ZipFile(folder / "dense.pt2", "a") as archive:
        archive.writestr("dense/data/weights/weight_99.pt", b"\x80\x02.")
    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_version, "an export of format 9; this version reads 1"),
        (_outside, "lies outside of the folder"),
        (_damaged_table, r"safetensors: is damaged"),
        (_missing_table, "is missing; the export is not whole"),
        (_no_manifest, "is no export"),
        (_other_tables, "does not give the probabilities"),
        (_a_pickle, "is a pickle, which is not loaded"),
    ],
)
def test_what_is_damaged_is_refused(
    copied: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copied)
    with pytest.raises(UserError, match=message):
        Predictor(copied)


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out, options, message in (
        ("fp32", [], "holds an export; choose another folder, or pass --overwrite"),
        ("data", ["--overwrite"], "is there and is no export"),
        ("new", ["--name", "../x"], "--name: '../x'; allowed"),
        ("new", ["--checkpoint", "99"], "checkpoint 99: none of this step is whole"),
        ("new", ["--checkpoint", "soon"], "is not last, best or a step"),
    ):
        try:
            code = export(folder / "run", folder / out, *options)
        except SystemExit as error:
            code = int(error.code or 0)
        assert code == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / "run" / "config.yaml", tmp_path / "empty")
    assert export(tmp_path / "empty", tmp_path / "out") == 2
    assert "no checkpoint under" in capsys.readouterr().err
    assert export(folder / "run", folder / "fp32", "--overwrite") == 0
