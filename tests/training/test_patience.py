"""Runs that end when the valid split no longer improves, and the weights that are tested."""

from pathlib import Path
from typing import Any

import pytest

import stem_torchrec as st
from stem_torchrec.config.given import given_config
from stem_torchrec.runs.records import Record
from stem_torchrec.stopping.interruption import Stopped
from stem_torchrec.training.evaluating import evaluate
from stem_torchrec.training.patience import Patience
from stem_torchrec.training.position import Position
from tests.support.prepared import small_config, small_data

EVERY_FIVE = {"train.max_steps": 30, "train.epochs": 3, "eval.every": 5}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patience")
    return small_config(folder / "c.yaml", small_data(folder / "data"), folder / "run")


def patience(**keys: Any) -> Patience:
    given = {"run.dir": "r", "data.path": "d", **{f"eval.{k}": v for k, v in keys.items()}}
    return Patience(given_config({}, given))


def evaluations(*values: float | None) -> list[Record]:
    return [
        {"kind": "eval", "split": "valid", "step": step, "auc_mean": value, "ne": {"click": value}}
        for step, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("keys", "values", "over"),
    [
        ({"patience": 2}, (0.5, 0.6, 0.55, 0.58), True),
        ({"patience": 2}, (0.5, 0.6, 0.55, 0.61), False),
        ({"patience": 2}, (0.5, 0.5, 0.5), True),  # as good is not better
        ({"patience": 3}, (0.5, 0.5, 0.5), False),
        ({"patience": 2, "min_delta": 0.02}, (0.5, 0.51, 0.52), True),
        ({"patience": 2, "min_delta": 0.02}, (0.5, 0.51, 0.53), False),
        ({"patience": 2, "metric": "valid/ne/click"}, (0.9, 0.8, 0.7), False),
        ({"patience": 2, "metric": "valid/ne/click"}, (0.7, 0.8, 0.9), True),
        ({"patience": 2}, (None, None), True),
        ({"patience": 2}, (None, 0.5, None), False),
        ({}, (0.5, 0.4, 0.3, 0.2), False),
    ],
)
def test_when_it_is_over(
    keys: dict[str, Any], values: tuple[float | None, ...], over: bool
) -> None:
    judge = patience(**keys)
    judge.start(evaluations(*values))
    assert judge.is_over == over
    judge.start([])
    assert not judge.is_over


def test_other_records_do_not_count() -> None:
    judge = patience(patience=1)
    others: list[Record] = [
        {"kind": "eval", "split": "test", "step": 1, "auc_mean": 0.1},
        {"kind": "train", "step": 2},
    ]
    judge.start([*evaluations(0.5), *others])
    assert not judge.is_over
    judge.judge(evaluations(None, 0.4)[1])
    assert judge.record(2) == {
        "kind": "stop",
        "step": 2,
        "metric": "valid/auc_mean",
        "best": 0.5,
        "best_step": 1,
        "evaluations": 1,
    }


def test_a_run_ends_and_goes_on_counting(config: Path, tmp_path: Path) -> None:
    never = {**EVERY_FIVE, "run.dir": tmp_path / "run", "eval.min_delta": 10.0}
    run = st.train(config, **never, **{"eval.patience": 2})
    assert run.step == 15  # the first is the best, and two were no better
    (stop,) = (r for r in run.metrics().to_pylist() if r["kind"] == "stop")
    assert (stop["step"], stop["best_step"], stop["evaluations"]) == (15, 5, 2)
    again = st.train(config, existing="resume", **never, **{"eval.patience": 2})
    assert again.step == 15
    further = st.train(config, existing="resume", **never, **{"eval.patience": 4})
    assert further.step == 25


def test_an_evaluation_that_was_put_off_counts_as_if_it_had_not_been(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the evaluation of the best weights, and killed after it was made up for."""
    keys = {**EVERY_FIVE, "train.max_steps": 20, "optim.lr": 0.1, "train.log_every": 5}
    keys |= {"checkpoint.keep_best": "valid/logloss/click", "checkpoint.keep": 1}
    keys |= {"optim.decay": "plateau", "optim.plateau_patience": 1, "eval.min_delta": 10.0}
    keys |= {"optim.plateau_factor": 0.95}
    whole = st.train(config, **keys, **{"run.dir": tmp_path / "whole"})
    (best,) = (row["step"] for row in whole.metrics().to_pylist() if row["split"] == "test")
    assert best < 20

    def stopped(*arguments: Any) -> Record:
        if arguments[2] == best:
            raise Stopped
        return evaluate(*arguments)

    def killed(position: Position) -> int:
        raise OSError(f"killed after step {position.step}")

    keys |= {"run.dir": tmp_path / "run"}
    with monkeypatch.context() as patched:
        patched.setattr("stem_torchrec.training.course.evaluate", stopped)
        with pytest.raises(KeyboardInterrupt, match=f"after step {best}"):
            st.train(config, **keys)
    with monkeypatch.context() as patched:
        patched.setattr(Position, "advance", killed)
        with pytest.raises(OSError, match=f"killed after step {best}"):
            st.train(config, existing="resume", **keys)
    again = st.train(config, existing="resume", **keys)
    assert sorted(_figures(again)) == sorted(_figures(whole))


def _figures(run: st.Run) -> list[str]:
    """Without what depends on the clock, and without what says that a checkpoint was saved."""
    names = ("kind", "split", "step", "lr/dense", "logloss/click")
    rows = run.metrics().select(names).to_pylist()
    return [str(row) for row in rows if row["kind"] != "checkpoint"]


@pytest.mark.parametrize("tested", ["best", "last"])
def test_the_best_weights_are_tested(config: Path, tmp_path: Path, tested: str) -> None:
    keys = {**EVERY_FIVE, "run.dir": tmp_path / "run", "optim.lr": 0.1, "train.max_steps": 20}
    # Less is better of the log loss, and at this learning rate it rises.
    keys |= {"checkpoint.keep_best": "valid/logloss/click", "checkpoint.keep": 1}
    if tested == "last":
        keys["eval.test_checkpoint"] = "last"
    run = st.train(config, **keys)
    rows = run.metrics().to_pylist()
    valid = {r["step"]: r["logloss/click"] for r in rows if r["split"] == "valid"}
    best = min(valid, key=lambda step: (valid[step], -step))
    assert best < 20
    (test,) = (r for r in rows if r["split"] == "test")
    assert test["step"] == (best if tested == "best" else 20)
    record = st.load_run(run.config.run.dir, tested).evaluate("test")
    assert record["auc"]["click"] == test["auc/click"]
    assert (record["step"], record["epoch"]) == (test["step"], test["epoch"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval.patience": 0}, "eval.patience"),
        ({"eval.patience": 2, "eval.metric": "test/auc_mean"}, "eval.metric.*valid/auc_mean"),
        ({"eval.patience": 2, "eval.metric": "valid/auc/share"}, "eval.metric: .*tasks: click"),
        ({"eval.patience": 2, "eval.metric": "valid/calibration/click"}, "eval.metric.*gauc"),
        ({"eval.test_checkpoint": "best"}, "eval.test_checkpoint: .*checkpoint.keep_best"),
        ({"eval.test_checkpoint": "first"}, "eval.test_checkpoint"),
        ({"eval.min_delta": -1.0}, "eval.min_delta"),
    ],
)
def test_what_cannot_be_is_refused(config: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(st.UserError, match=message):
        st.train(config, **keys)


def test_few_steps_are_said_with_what_to_set(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    st.train(config, **{"run.dir": tmp_path / "few", "train.epochs": 2})
    (said,) = (r.getMessage() for r in caplog.records if "train.epochs" in r.getMessage())
    assert "train.epochs 2 with train.batch_size 128 rows per rank make 32 steps" in said
    caplog.clear()
    st.train(config, **{"run.dir": tmp_path / "asked", "train.max_steps": 2})
    assert not [r for r in caplog.records if "train.epochs" in r.getMessage()]
