"""A run from a script: trained here, opened by checkpoint, asked for metrics and predictions."""

import json
import logging
import multiprocessing
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist
import yaml
from sklearn.metrics import roc_auc_score

import stem_torchrec as st
from stem_torchrec.config.given import given_config
from stem_torchrec.launch.launcher import run_workers
from stem_torchrec.training import start
from stem_torchrec.training.trainer import Outcome
from tests.support.prepared import small_config, small_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    small_config(folder / "c.yaml", small_data(folder / "data"), folder / "run")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> st.Run:
    """20 steps with evaluations after 5, 10, 15 and 20; kept are the last two and the best."""
    return st.train(
        folder / "c.yaml",
        train={"max_steps": 20, "epochs": 2},
        eval={"every": 5},
        **{"checkpoint.keep_best": "valid/auc_mean", "checkpoint.keep": 4},
    )


@pytest.fixture
def copied(run: st.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run.config.run.dir, tmp_path / "run"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No process group, no other log settings and no other warnings' filters than before."""
    logger = logging.getLogger()
    before = logger.level, logger.handlers[:], logging.getLogger("stem_torchrec").level
    filters = warnings.filters[:]
    yield
    assert not dist.is_initialized()
    assert (logger.level, logger.handlers, logging.getLogger("stem_torchrec").level) == before
    assert warnings.filters == filters


def test_overrides_are_the_configs(run: st.Run) -> None:
    assert run.step == 20
    assert (run.config.train.max_steps, run.config.checkpoint.keep) == (20, 4)
    assert run.config.train.batch_size == 128


def test_evaluates_as_the_run_did(run: st.Run) -> None:
    (trained,) = (r for r in run.metrics().to_pylist() if r["split"] == "test")
    record = run.evaluate("test")
    assert (record["step"], record["samples"]) == (20, 401)
    for task in ("click", "like"):
        assert record["auc"][task] == trained[f"auc/{task}"]


@pytest.mark.parametrize("split", ["train", "valid"])
def test_predictions_are_in_file_order(run: st.Run, folder: Path, split: str) -> None:
    table = run.predict(split)
    labels = pq.read_table(sorted((folder / "data" / split).glob("*.parquet")))
    record = run.evaluate(split)
    for task in table.column_names:
        observed = labels[task].is_valid().to_numpy()
        auc = roc_auc_score(labels[task].to_numpy()[observed], table[task].to_numpy()[observed])
        assert auc == pytest.approx(record["auc"][task], abs=1e-12)
    mean = table["click"].to_numpy().mean() / labels["click"].to_numpy().mean()
    assert mean == pytest.approx(record["calibration"]["click"])


def test_tables_are_those_of_the_features(run: st.Run) -> None:
    tables = run.tables("user_id", "item_id")
    assert {owner: sorted(found) for owner, found in tables.items()} == {
        owner: ["item_id", "user_id"] for owner in ("shared", "click", "like")
    }
    assert len(run.tables()["shared"]) > 2
    with pytest.raises(st.UserError, match=r"'user_idd' is not an id or bag feature.*user_id"):
        run.tables("user_idd")
    with pytest.raises(st.UserError, match="'dense_0' is not an id or bag feature"):
        run.tables("dense_0")


def test_metrics_have_a_row_per_record(run: st.Run) -> None:
    lines = (run.config.run.dir / "metrics.jsonl").read_text().splitlines()
    table = run.metrics()
    assert table.num_rows == len(lines)
    for row, line in zip(table.to_pylist(), lines, strict=True):
        record = json.loads(line)
        assert (row["kind"], row["step"], row["split"]) == (
            record["kind"],
            record["step"],
            record.get("split"),
        )
        if record["kind"] == "train":
            assert row["loss/click"] == record["loss"]["click"]
            assert row["auc_mean"] is None


def test_the_checkpoint_that_is_asked_for_is_opened(run: st.Run) -> None:
    rows = [r for r in run.metrics().to_pylist() if r["split"] == "valid"]
    best = max(rows, key=lambda row: (row["auc_mean"], row["step"]))
    opened = {choice: st.load_run(run.config.run.dir, choice) for choice in ("last", "best", 5)}
    assert [opened[choice].step for choice in ("last", "best", 5)] == [20, best["step"], 5]
    for choice in ("best", 5):
        record = opened[choice].evaluate("valid")
        (then,) = (row for row in rows if row["step"] == opened[choice].step)
        assert record["auc_mean"] == then["auc_mean"]
        assert record["step"] == then["step"]


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (7, ["7: none of this step is whole", "5", "10", "15", "20 (last"]),
        ("newest", ["'newest' is not last, best or a step"]),
        (True, ["True is not last, best or a step"]),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_message(
    run: st.Run, choice: Any, words: list[str]
) -> None:
    with pytest.raises(st.UserError) as error:
        st.load_run(run.config.run.dir, choice)
    for word in [*words, "there are those of step"]:
        assert word in str(error.value)


def test_no_best_where_no_metric_was_kept(copied: Path) -> None:
    run = st.train(copied / "config.yaml", existing="resume", **{
        "run.dir": copied, "train.max_steps": 21, "checkpoint.keep_best": None,
    })  # fmt: skip
    assert run.step == 21
    with pytest.raises(st.UserError, match=r"keep_best was not set.*21 \(last\)"):
        st.load_run(copied, "best")


def test_a_damaged_checkpoint_is_refused_where_it_was_asked_for(copied: Path) -> None:
    run = st.load_run(copied, 10)
    file = next((copied / "checkpoints" / "step_10").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(st.UserError, match=f"step_10: {file.name}.* damaged; there are .*20"):
        run.evaluate("valid")
    file.unlink()
    with pytest.raises(
        st.UserError, match="10: none of this step is whole; there are those of step 5, 15"
    ):
        st.load_run(copied, 10)


def test_a_run_that_is_there_is_refused_in_words_of_python(run: st.Run, folder: Path) -> None:
    with pytest.raises(st.UserError) as error:
        st.train(folder / "c.yaml")
    assert "pass existing='resume' or existing='overwrite'" in str(error.value)
    assert "--" not in str(error.value)
    with pytest.raises(st.UserError, match=r"^existing='resume': .*holds no run"):
        st.train(folder / "c.yaml", existing="resume", run={"dir": folder / "nowhere"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trian": {"epochs": 1}}, "trian: unknown key; did you mean train"),
        ({"train": {"epoch": 1}}, "train.epoch: unknown key; did you mean train.epochs"),
        ({"train.epochs": 0}, "train.epochs: .*found 0"),
        ({"train": 3}, "train: .*found 3"),
        ({"train": 3, "train.epochs": 1}, "train: expected keys, found 3"),
        ({"data": {"path": "nowhere"}}, "data.path: 'nowhere' is not a folder"),
        ({"existing": "resum"}, "existing: 'resum'; allowed: refuse, resume, overwrite"),
        ({"nproc": 0}, "nproc: 0 is not a number of at least 1"),
        ({"nproc": -1}, "nproc: -1 is not a number of at least 1"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(st.UserError, match=message):
        st.train(folder / "c.yaml", **{"run.dir": tmp_path / "new", **options})
    assert not (tmp_path / "new").exists()


def test_mistakes_in_opening_a_run(run: st.Run, tmp_path: Path) -> None:
    with pytest.raises(st.UserError, match="holds no run"):
        st.load_run(tmp_path)
    with pytest.raises(st.UserError, match="split: 'tset'; allowed: train, valid, test"):
        run.evaluate("tset")
    moved = st.load_run(run.config.run.dir, data={"path": str(tmp_path / "moved")})
    with pytest.raises(st.UserError, match="moved' is not a folder"):
        moved.predict("test")


def test_a_config_a_mapping_and_a_file_give_the_same(folder: Path) -> None:
    file = folder / "c.yaml"
    from_file = given_config(str(file), {"train": {"epochs": 3}})
    assert from_file == given_config(yaml.safe_load(file.read_text()), {"train.epochs": 3})
    assert from_file == given_config(from_file, {})
    assert given_config(from_file, {"train": {"epochs": 4}}).train.epochs == 4
    assert from_file.model.expert_widths == (16, 8)
    with pytest.raises(st.UserError, match=r"config: expected a file.*found 3"):
        given_config(3, {})  # type: ignore[arg-type]
    with pytest.raises(st.UserError, match="config: no file"):
        given_config(folder / "nowhere.yaml", {})


def test_somebody_elses_process_group_is_left_alone(run: st.Run) -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        with pytest.raises(st.UserError, match="has a process group already"):
            run.evaluate("valid")
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_an_error_amid_training_leaves_a_process_that_trains_on(
    folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    file = max((data / "train").glob("*.parquet"))
    table = pq.read_table(file)
    ids = table["user_id"].to_numpy().copy()
    ids[-1] = 1000
    place = table.column_names.index("user_id")
    wrong = table.set_column(place, "user_id", pa.array(ids, table.schema.field(place).type))
    pq.write_table(wrong, file, row_group_size=500)
    there = {
        "run.dir": tmp_path / "run",
        "checkpoint.every": 1,
        "data.shuffle": False,
    }  # the bad row comes last
    with pytest.raises(st.UserError, match=r"user_id.*1000"):
        st.train(folder / "c.yaml", **there, data={"path": data})
    assert not dist.is_initialized()
    again = {**there, "run.dir": tmp_path / "again", "train.max_steps": 2}
    assert st.train(folder / "c.yaml", **again).step == 2


def test_a_run_that_a_signal_ends_does_not_let_the_script_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = Outcome(None, None, stopped=3)
    monkeypatch.setattr(start, "run_workers", lambda *_: stopped)
    with pytest.raises(KeyboardInterrupt, match="after step 3; existing='resume'"):
        st.train(folder / "c.yaml", run={"dir": tmp_path / "new"})
    monkeypatch.setattr(start, "run_workers", lambda *_: stopped._replace(failure=OSError("full")))
    with pytest.raises(OSError, match="full"):
        st.train(folder / "c.yaml", run={"dir": tmp_path / "new"})


def script(config: Path, folder: Path) -> list[Any]:
    """What a script does that torchrun has started, on each of its ranks."""
    run = st.train(config, **{"run.dir": folder, "train.max_steps": 3})
    with pytest.raises(st.UserError, match="without torchrun"):
        run.predict("valid")
    return [run.evaluate(split)["auc"] for split in ("valid", "test")]


def test_a_script_on_two_ranks_of_torchrun(folder: Path, tmp_path: Path) -> None:
    found = run_workers(2, script, folder / "c.yaml", tmp_path / "two")
    manifest = json.loads((tmp_path / "two/checkpoints/step_3/manifest.json").read_text())
    assert manifest["about"]["world_size"] == 2
    run = st.load_run(tmp_path / "two")
    for split, auc in zip(("valid", "test"), found, strict=True):
        assert run.evaluate(split)["auc"] == pytest.approx(auc)


def test_as_many_workers_as_are_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_workers(*arguments: Any) -> None:
        asked.extend(arguments)

    monkeypatch.setattr(start, "run_workers", run_workers)
    with pytest.raises(KeyboardInterrupt):
        st.train(folder / "c.yaml", nproc=2, run={"dir": tmp_path / "new"})
    assert asked[0] == 2
    assert pickle.loads(pickle.dumps(asked[1:]))[1].run.dir == tmp_path / "new"


def test_a_script_that_its_own_processes_import_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(st.UserError, match="if __name__ == "):
        st.train(folder / "c.yaml", nproc=2)
