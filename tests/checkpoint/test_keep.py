"""Which checkpoints stay."""

from pathlib import Path

import pytest

from stem_torchrec.checkpoint.folders import saved_steps
from stem_torchrec.checkpoint.keep import metric_value, remove_old
from stem_torchrec.checkpoint.manifest import Manifest, write_manifest
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.config.reading import validate
from stem_torchrec.errors import UserError

EVALUATED = {"split": "valid", "auc": {"a": 0.7, "b": None}, "auc_mean": 0.6, "step": 3}


def write(folder: Path, step: int, value: float | None, name: str = "valid/auc_mean") -> None:
    path = folder / f"step_{step}"
    path.mkdir()
    about = {"step": step, "metric": {"name": name, "value": value}}
    write_manifest(path, Manifest(about, ()))


@pytest.mark.parametrize(
    ("metric", "kept"),
    [(None, [4, 5]), ("valid/auc_mean", [2, 4, 5]), ("valid/ne/a", [4, 5])],
)
def test_newest_and_best(tmp_path: Path, metric: str | None, kept: list[int]) -> None:
    for step, value in enumerate((0.5, 0.9, 0.8, None, 0.7), start=1):
        write(tmp_path, step, value)
    remove_old(tmp_path, 5, keep=2, metric=metric)
    assert saved_steps(tmp_path) == kept


def test_less_is_better(tmp_path: Path) -> None:
    for step, value in enumerate((0.9, 0.5, 0.8), start=1):
        write(tmp_path, step, value, "valid/ne/a")
    remove_old(tmp_path, 3, keep=1, metric="valid/ne/a")
    assert saved_steps(tmp_path) == [2, 3]


def test_what_is_new_stays_even_below_others(tmp_path: Path) -> None:
    """After a resume from an early checkpoint; and what is no checkpoint is left alone."""
    for step in (3, 7, 8):
        write(tmp_path, step, None)
    (tmp_path / "step_5").mkdir()
    (tmp_path / "step_6.partial").mkdir()
    remove_old(tmp_path, 3, keep=1, metric=None)
    assert saved_steps(tmp_path) == [3, 8]
    assert {path.name for path in tmp_path.iterdir()} == {"step_3", "step_5", "step_8"}


def test_a_removal_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        write(tmp_path, step, None)
    with monkeypatch.context() as patch:
        patch.setattr("stem_torchrec.storage.place.shutil.rmtree", refuse)
        remove_old(tmp_path, 2, keep=1, metric=None)
    assert saved_steps(tmp_path) == [2]
    remove_old(tmp_path, 2, keep=1, metric=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step_2"]


def refuse(path: Path) -> None:
    raise OSError(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("valid/auc_mean", 0.6),
        ("valid/auc/a", 0.7),
        ("valid/auc/b", None),
        ("valid/auc/c", None),
        (None, None),
    ],
)
def test_metric_of_a_record(name: str | None, value: float | None) -> None:
    assert metric_value(EVALUATED, name) == value
    assert metric_value(None, name) is None


@pytest.mark.parametrize("name", ["auc", "valid/calibration/a", "test/auc_mean", "valid/auc", ""])
def test_other_metrics_are_refused(name: str) -> None:
    content = {"run": {"dir": "r"}, "data": {"path": "d"}, "checkpoint": {"keep_best": name}}
    with pytest.raises(UserError, match=r"checkpoint.keep_best: .*valid/METRIC/TASK"):
        validate(content)
    assert CheckpointConfig(keep_best="valid/logloss/a").keep_best == "valid/logloss/a"
