"""A run whose folder is in an object store: a real S3-compatible server process."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest

from stem_torchrec import checkpoint
from stem_torchrec.checkpoint.folders import newest_valid, saved_steps
from stem_torchrec.checkpoint.keep import remove_old
from stem_torchrec.cli import main
from stem_torchrec.config import DistributedConfig
from stem_torchrec.config.reading import load_config
from stem_torchrec.distributed.ranks import Ranks, start_ranks, stop_ranks
from stem_torchrec.errors import UserError
from stem_torchrec.storage import growing_folder
from stem_torchrec.storage.growing_folder import GrowingFolder
from stem_torchrec.storage.place import place_of
from stem_torchrec.storage.store_path import StorePath
from stem_torchrec.training.job import train
from tests.support.prepared import small_config, small_data
from tests.support.s3_server import bucket

pytest.importorskip("moto")

SPEED = {"qps", "qps_total", "peak_memory_bytes", "total_steps"}
RUN = "s3://bucket/runs/whole"
LAST = 8
"""Steps of an epoch on two ranks."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fs.FileSystem]:
    with bucket(tmp_path_factory.mktemp("s3") / "log") as store:
        yield store.filesystem


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    small_data(folder / "data")
    return small_config(folder / "config.yaml", folder / "data", folder / "local")


@pytest.fixture(scope="module")
def run(store: fs.FileSystem, config: Path) -> StorePath:
    """Two ranks, stopped after step 5 and resumed."""
    options = ["--run.dir", RUN, "--nproc", "2", "--checkpoint.every", "2"]
    assert main(["train", "--config", str(config), *options, "--train.max_steps", "5"]) == 0
    assert main(["train", "--config", str(config), *options, "--resume"]) == 0
    return at(RUN)


@pytest.fixture
def copied(run: StorePath, store: fs.FileSystem, request: pytest.FixtureRequest) -> StorePath:
    """A copy of the run to damage."""
    place = at(f"s3://bucket/copies/{request.node.name}")
    for file in run.files():
        (place / file.path.removeprefix(f"{run.path}/")).write_bytes(file.read_bytes())
    return place


@pytest.fixture
def rank() -> Iterator[Ranks]:
    """A job of one rank; commands of other tests have ended theirs."""
    yield start_ranks(DistributedConfig(device="cpu"))
    stop_ranks()


def at(url: str) -> StorePath:
    place = place_of(url)
    assert isinstance(place, StorePath)
    return place


def records(text: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in line.items() if k not in SPEED} for line in lines]


def test_a_resumed_run_is_a_local_one_that_was_not_stopped(run: StorePath, config: Path) -> None:
    local = config.parent / "local"
    assert main(["train", "--config", str(config), "--nproc", "2", "--checkpoint.every", "2"]) == 0
    ours = records((run / "metrics.jsonl").read_text())
    theirs = records((local / "metrics.jsonl").read_text())
    assert [r for r in ours if r["step"] != 5] == [r for r in theirs if r["step"] != 5]
    assert ours[-1]["split"] == "test"
    names = {file.name for file in (run / "checkpoints" / f"step_{LAST}").files()}
    assert names == {p.name for p in (local / "checkpoints" / f"step_{LAST}").iterdir()}
    assert any(file.name.startswith("events.") for file in (run / "tb").files())


def test_the_newest_checkpoints_stay(run: StorePath) -> None:
    assert saved_steps(run / checkpoint.FOLDER) == [6, LAST]
    assert {path.name for path in (run / checkpoint.FOLDER).iterdir()} == {"step_6", "step_8"}


def test_evaluating_on_one_rank(run: StorePath, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", "--run", RUN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = records((run / "metrics.jsonl").read_text())[-1]
    assert found["auc_mean"] == pytest.approx(expected["auc_mean"], abs=1e-6)
    assert found["samples"] == 401


def test_a_folder_with_a_run_is_refused(
    run: StorePath, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(config), "--run.dir", RUN]) == 2
    assert f"run.dir: '{RUN}' already holds a run" in capsys.readouterr().err
    assert main(["train", "--config", str(config), "--run.dir", "s3://none/run"]) == 2
    assert "the bucket 'none' does not exist" in capsys.readouterr().err


def test_overwriting(copied: StorePath, config: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    options = ["--run.dir", str(copied), "--overwrite", "--train.max_steps", "3"]
    assert main(["train", "--config", str(config), *options]) == 0
    assert saved_steps(copied / checkpoint.FOLDER) == [3]
    assert [record["step"] for record in records((copied / "metrics.jsonl").read_text())] == [3] * 3
    assert (copied / "notes.txt").read_text() == "mine"


def test_weights_of_another_run(run: StorePath, config: Path, tmp_path: Path) -> None:
    options = ["--run.dir", str(tmp_path / "tuned"), "--init-from", RUN, "--train.max_steps", "1"]
    assert main(["train", "--config", str(config), *options]) == 0
    report = json.loads((tmp_path / "tuned" / "init.json").read_text())
    assert report["from"] == f"{RUN}/checkpoints/step_{LAST}"
    assert len(report["loaded"]) > 5
    assert report["initial"] == {}


@pytest.mark.parametrize("file", ["__1_0.distcp", "index.json", "rank_0.pt", "manifest.json"])
def test_a_damaged_file_is_passed_over(
    copied: StorePath, file: str, rank: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = copied / checkpoint.FOLDER / f"step_{LAST}" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(bytes(content))
    with caplog.at_level(logging.WARNING):
        assert newest_valid(copied, rank).name == "step_6"
    assert f"checkpoint passed over: step_{LAST}: {file}" in caplog.text
    damaged.remove()
    assert newest_valid(copied, rank).name == "step_6"


def test_what_a_save_that_was_cut_off_leaves_goes(copied: StorePath, config: Path) -> None:
    """Without a manifest it is no checkpoint; the next save removes it."""
    for step in (6, LAST):
        (copied / checkpoint.FOLDER / f"step_{step}" / "manifest.json").remove()
    (copied / checkpoint.FOLDER / "step_4" / "__0_0.distcp").write_bytes(b"part")
    options = ["--config", str(config), "--run.dir", str(copied)]
    assert main(["train", *options, "--resume"]) == 2
    for step in (6, LAST):
        source = at(RUN) / checkpoint.FOLDER / f"step_{step}" / "manifest.json"
        target = copied / checkpoint.FOLDER / f"step_{step}" / "manifest.json"
        target.write_bytes(source.read_bytes())
    assert main(["train", *options, "--resume", "--train.epochs", "2"]) == 0
    names = {path.name for path in (copied / checkpoint.FOLDER).iterdir()}
    assert "step_4" not in names
    assert len(names) == 2


def test_others_files_beside_the_checkpoints_stay(copied: StorePath) -> None:
    folder = copied / checkpoint.FOLDER
    others = [folder / "step_10", folder / "step_3.zip", folder / "step_by_step" / "notes.txt"]
    for place in others:
        place.write_bytes(b"mine")
    (folder / "step_7" / "rank_0.pt").write_bytes(b"part")
    remove_old(folder, LAST, keep=1, metric=None)
    found = {file.path.removeprefix(f"{folder.path}/") for file in folder.files()}
    assert {name for name in found if not name.startswith(f"step_{LAST}/")} == {
        *("step_10", "step_3.zip", "step_by_step/notes.txt")
    }


def test_a_removal_that_is_cut_off(copied: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves what the next one takes for a leftover."""
    folder = copied / checkpoint.FOLDER
    with monkeypatch.context() as patch:
        patch.setattr("stem_torchrec.storage.publishing.remove", remove_file)
        remove_old(folder, LAST, keep=1, metric=None)
    assert saved_steps(folder) == [LAST]
    assert (folder / "step_6" / "rank_0.pt").exists()
    remove_old(folder, LAST, keep=1, metric=None)
    assert [path.name for path in folder.iterdir()] == [f"step_{LAST}"]


def remove_file(place: StorePath) -> None:
    if place.is_dir():
        raise UserError(f"{place}: refused")
    place.remove()


def test_what_is_published_stays_when_another_rank_is_lost_then(
    store: fs.FileSystem, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("stem_torchrec.checkpoint.save.remove_old", lose)
    options = ["--run.dir", "s3://bucket/runs/peer", "--train.max_steps", "2"]
    assert main(["train", "--config", str(config), *options]) == 0
    assert saved_steps(at("s3://bucket/runs/peer") / checkpoint.FOLDER) == [2]


def test_what_grows_is_uploaded_now_and_then(
    store: fs.FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = at("s3://bucket/growing")
    (place / "log").write_text("one\n")
    growing = GrowingFolder(place, ["log"])
    with (growing.here / "log").open("a") as file:
        file.write("two\n")
    growing.upload_now_and_then()
    assert (place / "log").read_text() == "one\n"
    monkeypatch.setattr(growing_folder, "monotonic", lambda: float("inf"))
    growing.upload_now_and_then()
    assert (place / "log").read_text() == "one\ntwo\n"
    growing.close(failed=False)
    assert not growing.here.exists()


def test_a_run_goes_on_without_its_store(
    config: Path, tmp_path: Path, rank: Ranks, caplog: pytest.LogCaptureFixture
) -> None:
    """Saves fail with the reason; the records are kept here."""
    seen: list[dict[str, Any]] = []
    with bucket(tmp_path / "log") as store:

        def listen(record: dict[str, Any]) -> None:
            seen.append(record)
            if record["kind"] == "train" and record["step"] == 15:
                store.stop()  # the save of step 7 is done, that of step 14 may go on

        options = ["--run.dir=s3://bucket/lost", "--checkpoint.every=7"]
        with caplog.at_level(logging.WARNING):
            outcome = train(load_config(config, options), rank, existing="refuse", listener=listen)
    steps = [record["step"] for record in seen if record["kind"] == "checkpoint"]
    assert steps in ([16, 16], [14, 16, 16])  # the last is tried twice
    assert [record["step"] for record in seen if record["kind"] == "train"] == [5, 10, 15, 16]
    assert "checkpoint of step 16 failed: rank 0: " in caplog.text
    assert isinstance(outcome.failure, UserError)
    assert "unreachable" in str(outcome.failure)
    kept = Path(str(outcome.failure).rpartition("the run's records are kept in ")[2])
    assert outcome.test in records((kept / "metrics.jsonl").read_text())
    shutil.rmtree(kept)
