"""Predictions for files: those that evaluating sees, from ids and from raw values, on any ranks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stem_torchrec as st
from stem_torchrec.cli import main
from stem_torchrec.serving.prediction_files import PredictionFiles
from tests.support.prepared import small_config, small_data
from tests.support.raw_run import RAW_COLUMNS, raw_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on prepared data of two test files; the first one ends inside a batch."""
    folder = tmp_path_factory.mktemp("predict")
    small_config(folder / "c.yaml", small_data(folder / "data"), folder / "run")
    test = folder / "data" / "test"
    (whole,) = test.glob("*.parquet")
    table = pq.read_table(whole)
    whole.unlink()
    (test / "hour=3").mkdir()
    pq.write_table(table.slice(0, 150), test / "a.parquet", row_group_size=70)
    pq.write_table(table.slice(150), test / "hour=3" / "b.parquet")
    st.train(folder / "c.yaml", train={"max_steps": 6})
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_run(tmp_path_factory.mktemp("raw"))


def predict(folder: Path, out: Path, *options: str) -> int:
    data = () if "--data" in options else ("--data", str(folder / "data"))
    return main(["predict", "--run", str(folder / "run"), "--out", str(out), *data, *options])


def read(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.rglob("*.parquet"))])


def test_probabilities_are_those_of_evaluation(folder: Path, tmp_path: Path) -> None:
    assert predict(folder, tmp_path, "--keep", "user_id", "dense_0") == 0
    expected = st.load_run(folder / "run").predict("test")
    found = read(tmp_path)
    assert found.column_names == ["user_id", "dense_0", "click", "like"]
    assert found.select(["click", "like"]).equals(expected)
    assert pq.read_metadata(tmp_path / "a.parquet").num_rows == 150
    assert pq.read_metadata(tmp_path / "hour=3" / "b.parquet").num_rows == 251
    split = read(folder / "data" / "test")
    assert found["user_id"].equals(split["user_id"])
    assert pq.read_table(tmp_path).num_rows == found.num_rows  # the folder is a Parquet data set


def test_labels_are_not_needed_and_nothing_else_of_the_tasks(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data" / "test", tmp_path / "data" / "test")
    for file in (tmp_path / "data" / "test").rglob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(["click", "like"]), file)
    schema = json.loads((folder / "data" / "schema.json").read_text())
    schema["tasks"] = [{"name": "another"}]
    (tmp_path / "data" / "schema.json").write_text(json.dumps(schema))
    assert predict(folder, tmp_path / "out", "--data", str(tmp_path / "data" / "test")) == 0
    assert read(tmp_path / "out").equals(st.load_run(folder / "run").predict("test"))


def test_an_interruption_is_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, closed = PredictionFiles.close, []

    def interrupted(files: PredictionFiles) -> None:
        if closed:
            raise KeyboardInterrupt
        closed.append(files)
        close(files)

    monkeypatch.setattr(PredictionFiles, "close", interrupted)
    assert predict(folder, tmp_path) == 130
    assert [file.name for file in tmp_path.rglob("*.parquet")] == ["a.parquet"]
    monkeypatch.undo()
    before = (tmp_path / "a.parquet").stat().st_mtime_ns
    assert predict(folder, tmp_path) == 0
    assert (tmp_path / "a.parquet").stat().st_mtime_ns == before
    assert read(tmp_path).equals(st.load_run(folder / "run").predict("test"))
    assert predict(folder, tmp_path) == 0  # nothing is left to do


@pytest.mark.slow
def test_two_ranks(folder: Path, tmp_path: Path) -> None:
    assert predict(folder, tmp_path, "--nproc", "2", "--eval.batch_size", "40") == 0
    expected = st.load_run(folder / "run").predict("test")
    for task in ("click", "like"):
        np.testing.assert_allclose(read(tmp_path)[task], expected[task], atol=1e-6)


def test_raw_files_go_through_the_runs_encoder(raw: Path, tmp_path: Path) -> None:
    files = [str(raw / "more_1.csv"), str(raw / "more_2.csv")]
    assert predict(raw, tmp_path / "out", "--data", *files, "--keep", "shop") == 0
    found = read(tmp_path / "out")
    assert found["shop"].to_pylist() == ["s1", "s2", "never", None, "s1"]
    # The rows of the first file are the test rows that were prepared.
    expected = st.load_run(raw / "run").predict("test")
    np.testing.assert_allclose(found["click"][:3], expected["click"][:3], atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere.csv"], "--data: no file 'nowhere.csv'"),
        (["--keep", "click"], "--keep: 'click' is a task"),
        (["--keep", "colour"], "column 'colour' is missing; it has"),
        (
            ["--checkpoint", "3"],
            "checkpoint 3: none of this step is whole; there are those of step 6",
        ),
        (["--out", "taken"], "'taken' holds something else than predictions"),
        (["--data", "."], "is no prepared folder (schema.json is missing)"),
    ],
)
def test_mistakes(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    assert predict(folder, tmp_path / "out", *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_run_without_an_encoder_takes_no_raw_files(
    folder: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(folder, tmp_path, "--data", str(raw / "more_1.csv")) == 2
    assert "has no encoder, so raw values cannot become ids" in capsys.readouterr().err


def test_another_vocabulary_is_refused(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(raw / "run", tmp_path / "run")
    file = tmp_path / "run" / "encoder" / "vocab" / "shop.parquet"
    table = pq.read_table(file)
    pq.write_table(
        table.set_column(0, "value", [pa.array(["z", *table["value"][1:].to_pylist()])]), file
    )
    arguments = ["--run", str(tmp_path / "run"), "--data", str(raw / "more_1.csv")]
    assert main(["predict", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert "not the vocabulary that 'shop' was trained with" in capsys.readouterr().err
    assert RAW_COLUMNS
