"""``optim.decay: plateau``: learning rates that drop where evaluations no longer improve."""

from pathlib import Path
from typing import Any

import pytest

import stem_torchrec as st
from stem_torchrec.config.given import given_config
from stem_torchrec.training.checks import doubtful_settings
from stem_torchrec.training.patience import Plateau
from tests.support.prepared import small_config, small_data
from tests.training.test_patience import evaluations

KEYS = {"optim.decay": "plateau", "optim.plateau_patience": 1, "optim.plateau_factor": 0.5}
NEVER_BETTER = KEYS | {"eval.every": 5, "eval.min_delta": 10.0, "train.log_every": 5}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plateau")
    return small_config(folder / "c.yaml", small_data(folder / "data"), folder / "run")


def plateau(**keys: Any) -> Plateau:
    given = {"run.dir": "r", "data.path": "d", "optim.decay": "plateau", **keys}
    return Plateau(given_config({}, given))


@pytest.mark.parametrize(
    ("keys", "values", "factor"),
    [
        ({}, (0.5, 0.6, 0.6, 0.61, 0.6), 1.0),
        ({}, (0.5, 0.5, 0.5), 0.5),
        ({}, (0.5, 0.5, 0.5, 0.5), 0.5),  # a plateau is counted anew after a drop
        ({}, (0.5, 0.5, 0.5, 0.5, 0.5), 0.25),
        ({"optim.plateau_factor": 0.1, "optim.final_lr_ratio": 0.2}, (0.5, 0.5, 0.5), 0.2),
        ({"eval.metric": "valid/ne/click"}, (0.9, 0.8, 0.7), 1.0),
        ({"eval.min_delta": 0.02}, (0.5, 0.51, 0.52), 0.5),
        ({"optim.decay": "linear"}, (0.5, 0.5, 0.5), 1.0),
    ],
)
def test_when_the_rates_drop(
    keys: dict[str, Any], values: tuple[float, ...], factor: float
) -> None:
    """Wherever it goes on from its state, with the same records it comes to the same."""
    records = evaluations(*values)
    for cut in range(len(records) + 1):
        first, rest = plateau(**keys), plateau(**keys)
        for record in records[:cut]:
            first.judge(record)
        rest.load_state_dict(first.state_dict())
        for record in [*records[cut:], {"kind": "eval", "split": "test", "step": 9}]:
            rest.judge(record)
        assert rest.factor == pytest.approx(factor)


def test_a_run_that_goes_on_has_the_rates_of_one_that_was_never_stopped(
    config: Path, tmp_path: Path
) -> None:
    keys = NEVER_BETTER | {"train.epochs": 3, "checkpoint.every": 10, "checkpoint.keep": 9}
    whole = st.train(config, **keys, **{"run.dir": tmp_path / "whole", "train.max_steps": 20})
    rates = {r["step"]: r["lr/dense"] for r in whole.metrics().to_pylist() if r["kind"] == "train"}
    assert rates == {5: 0.001, 10: 0.001, 15: 0.0005, 20: 0.00025}
    part = keys | {"run.dir": tmp_path / "part"}
    st.train(config, **part, **{"train.max_steps": 10})
    (tmp_path / "part" / "metrics.jsonl").write_text("")  # the checkpoint alone has the state
    rest = st.train(config, existing="resume", **part, **{"train.max_steps": 20})
    rows = rest.metrics().to_pylist()
    assert {r["step"]: r["lr/dense"] for r in rows if r["kind"] == "train"} == {
        15: 0.0005,
        20: 0.00025,
    }
    assert rest.evaluate("valid")["auc"] == whole.evaluate("valid")["auc"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train.max_steps": 5}, "one at its end alone; set eval.every .* or more train.epochs"),
        ({"eval.every": 5, "train.max_steps": 5}, "one at its end alone"),
        ({"eval.metric": "valid/auc/share"}, "optim.decay: .*tasks: click"),
        ({"optim.plateau_factor": 1.0}, "optim.plateau_factor: .*less than 1"),
        ({"optim.plateau_patience": 0}, "optim.plateau_patience: .*greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_refused(config: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(st.UserError, match=message):
        st.train(config, **(KEYS | keys))


def test_without_a_valid_split_it_is_refused(config: Path, tmp_path: Path) -> None:
    data = small_data(tmp_path / "data", train_rows=10)
    (data / "valid").rename(data / "other")
    with pytest.raises(st.UserError, match=r"optim.decay: .*has no valid/"):
        st.train(config, **KEYS, **{"data.path": data, "train.epochs": 2})


def test_settings_without_effect_are_told() -> None:
    given = {"run.dir": "r", "data.path": "d", "train.epochs": 2, "eval.min_delta": 0.1}
    given |= {"optim.plateau_factor": 0.1}
    said = "\n".join(doubtful_settings(given_config({}, given)))
    assert "optim.plateau_factor has no effect with optim.decay none" in said
    assert "eval.min_delta has no effect" in said
    given |= {"optim.decay": "plateau", "optim.decay_steps": 5}
    said = "\n".join(doubtful_settings(given_config({}, given)))
    assert "optim.decay_steps has no effect with optim.decay plateau" in said
    assert "eval.min_delta" not in said
