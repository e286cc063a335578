"""How long a run trains, and on how many rows a step, where no key says so."""

from pathlib import Path
from typing import Any

import pytest

import stem_torchrec as st
from stem_torchrec.config import Config
from stem_torchrec.errors import UserError
from stem_torchrec.runs.schema import selected_schema
from stem_torchrec.training.checks import check_settings
from stem_torchrec.training.settling import batch_size_for, settled
from tests.support.prepared import small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data") / "small")


def of(folder: Path, **keys: Any) -> Config:
    """The settled config of a run with these keys alone."""
    config = Config.model_validate({"run": {"dir": "run"}, "data": {"path": str(folder)}} | keys)
    return settled(config, selected_schema(config))


@pytest.mark.parametrize(
    ("keys", "epochs", "patience", "keep_best"),
    [
        ({}, 20, 2, "valid/auc_mean"),
        ({"eval": {"patience": 5, "metric": "valid/ne/like"}}, 20, 5, "valid/ne/like"),
        ({"checkpoint": {"keep_best": "valid/auc/click"}}, 20, 2, "valid/auc/click"),
        ({"eval": {"every": 2}}, 20, 2 * 4, "valid/auc_mean"),  # of 7.8 steps a pass
        ({"train": {"epochs": 3}}, 3, None, None),
        ({"train": {"max_steps": 7}}, 1, None, None),
    ],
)
def test_the_valid_split_ends_what_nothing_else_does(
    data: Path, keys: dict[str, Any], epochs: int, patience: int | None, keep_best: str | None
) -> None:
    config = of(data, **keys)
    assert (config.train.epochs, config.eval.patience) == (epochs, patience)
    assert config.checkpoint.keep_best == keep_best
    assert config.metric == (keep_best or "valid/auc_mean")


def test_what_is_kept_may_be_chosen_by_another_figure_than_the_end(data: Path) -> None:
    keys = {"eval": {"metric": "valid/ne/like"}, "checkpoint": {"keep_best": "valid/auc/click"}}
    config = of(data, **keys)
    assert (config.metric, config.checkpoint.keep_best) == ("valid/ne/like", "valid/auc/click")


def test_a_figure_without_a_value_is_refused_where_the_valid_split_ends_a_run(data: Path) -> None:
    config = {"run": {"dir": "run"}, "data": {"path": str(data)}}
    config |= {"eval": {"metric": "valid/auc/share"}}
    with pytest.raises(UserError, match=r"eval\.metric: 'valid/auc/share'; tasks: click, like"):
        check_settings(Config.model_validate(config), 1)


def test_the_best_weights_are_tested_only_where_some_are_kept(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    (data / "valid").rename(tmp_path / "valid")
    config = {"run": {"dir": "run"}, "data": {"path": str(data)}}
    config |= {"eval": {"test_checkpoint": "best"}}
    with pytest.raises(UserError, match=r"eval\.test_checkpoint: .*no best one is kept"):
        check_settings(Config.model_validate(config), 1)


def test_one_pass_without_a_valid_split(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    (data / "valid").rename(tmp_path / "valid")
    config = of(data)
    assert (config.train.epochs, config.eval.patience, config.tests_best) == (1, None, False)


def test_one_pass_over_chosen_days(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", days=2)
    assert of(data, data={"path": str(data), "days": "2024-01-02"}).train.epochs == 1


@pytest.mark.parametrize(
    ("rows", "size"), [(0, 256), (153_599, 256), (153_600, 512), (10**6, 2048), (10**9, 4096)]
)
def test_a_batch_leaves_enough_steps(rows: int, size: int) -> None:
    assert batch_size_for(rows) == size


def test_a_given_batch_size_stays(data: Path) -> None:
    assert of(data).train.batch_size == 256
    assert of(data, train={"batch_size": 100}).train.batch_size == 100


def test_a_run_without_keys_tests_its_best_weights(data: Path, tmp_path: Path) -> None:
    config = {"run": {"dir": str(tmp_path / "run")}, "data": {"path": str(data)}}
    small = {"embedding": {"dim": 4}, "model": {"expert_widths": [8]}}
    run = st.train(config, **small, eval={"min_delta": 1.0}, nproc=1)
    assert run.step == 3 * 8  # the first evaluation, and two that were not better by so much
    assert run.config.train.epochs == 20  # the folder says what was meant
    rows = run.metrics().to_pylist()
    valid = {row["step"]: row["auc_mean"] for row in rows if row["split"] == "valid"}
    (test,) = (row for row in rows if row["split"] == "test")
    assert valid[test["step"]] == max(valid.values())
    again = st.train(config, **small, eval={"min_delta": 1.0}, nproc=1, existing="resume")
    assert again.step == run.step
