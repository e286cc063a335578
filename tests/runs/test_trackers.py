"""Where records go beside ``metrics.jsonl``: MLflow's store in a file, and trackers that fail."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from stem_torchrec.cli import main
from stem_torchrec.config import Config
from stem_torchrec.runs.folder import OWN_FILES
from stem_torchrec.runs.records import METRICS, Recorder
from stem_torchrec.runs.trackers import mlflow, trackers
from stem_torchrec.runs.trackers.tracker import End, Tracked, Tracker
from tests.support.prepared import small_config, small_data

RECORDS = [{"kind": "train", "step": step, "loss": {"click": 1 / step}} for step in (1, 2, 3)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's store in a file, which a run finds by MLflow's own variables."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)  # artifacts go below it
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    return MlflowClient(uri)


def test_a_run_and_its_rest_are_one_run_of_the_store(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    config = small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), run_dir)
    train = ["train", "--config", str(config), "--run.trackers", "mlflow"]
    assert main([*train, "--train.max_steps", "3"]) == 0
    experiment = store.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = store.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["train.max_steps"] == "3"
    names = {file.path for file in store.list_artifacts(run.info.run_id)}
    assert names == {"config.yaml", "schema.json", "plan.txt", METRICS}

    assert main([*train, "--train.max_steps", "5", "--resume"]) == 0
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    lines = (run_dir / METRICS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["split"] == "test"
    assert run.data.metrics["test/auc_mean"] == records[-1]["auc_mean"]
    steps = {m.step for m in store.get_metric_history(run.info.run_id, "train/loss/click")}
    assert steps == {3, 5}
    assert not (run_dir / "tb").exists()
    assert "gets no more records" not in caplog.text

    assert main([*train, "--train.max_steps", "1", "--overwrite"]) == 0
    assert len(store.search_runs([experiment.experiment_id])) == 2


@pytest.mark.parametrize(("complete", "status"), [(True, "FINISHED"), (False, "KILLED")])
def test_how_a_run_has_ended(
    store: MlflowClient, tmp_path: Path, complete: bool, status: str
) -> None:
    config = Config.model_validate(
        {"run": {"dir": tmp_path, "trackers": ["mlflow"]}, "data": {"path": tmp_path}}
    )
    with Recorder(tmp_path, active=True, config=config) as recorder:
        for record in RECORDS:
            recorder.write(record)
        recorder.complete = complete
    run = store.get_run(json.loads((tmp_path / mlflow.FILE).read_text())["run_id"])
    assert run.info.status == status
    history = store.get_metric_history(run.info.run_id, "train/loss/click")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert mlflow.FILE in OWN_FILES


def test_a_store_that_is_not_there_costs_one_warning(
    store: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / mlflow.FILE).write_text('{"run_id": "gone"}')
    tracked = trackers.Trackers(["tensorboard", "mlflow"], Tracked(tmp_path, tmp_path))
    while threading.active_count() > 1 and any(
        thread.name == "stem_torchrec-mlflow" for thread in threading.enumerate()
    ):
        pass
    for record in RECORDS:
        tracked.add(record)
    tracked.close("complete")
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("mlflow gets no more records of this run: Run with id=gone")
    assert list((tmp_path / "tb").iterdir())


class Failing(Tracker):
    """Raises from its second record on; counts its calls."""

    calls = 0

    def __init__(self, run: Tracked) -> None:
        pass

    def add(self, record: Mapping[str, Any]) -> None:
        Failing.calls += 1
        if record["step"] > 1:
            raise KeyError("http://me:secret@host")

    def flush(self) -> None:
        raise AssertionError

    def close(self, end: End) -> None:
        raise AssertionError


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "_KINDS", {"tensorboard": Failing})
    with Recorder(tmp_path, active=True) as recorder:
        for record in RECORDS:
            recorder.write(record)
        recorder.upload()
    assert Failing.calls == 2
    assert caplog.text.count("gets no more records") == 1
    assert "secret" not in caplog.text
    assert len((tmp_path / METRICS).read_text().splitlines()) == 3
    assert recorder.failure is None


def test_what_is_not_installed_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    config = small_config(
        tmp_path / "c.yaml", small_data(tmp_path / "data", train_rows=10), tmp_path / "run"
    )
    assert main(["train", "--config", str(config), "--run.trackers", "mlflow"]) == 2
    assert "pip install 'stem-torchrec[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", "--config", str(config), "--run.trackers", "wandb"]) == 2
    assert "'tensorboard' or 'mlflow'" in capsys.readouterr().err
