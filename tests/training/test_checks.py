"""Warnings about settings that are allowed but have no effect, or cost much."""

from pathlib import Path

import pytest

from stem_torchrec.config import Config
from stem_torchrec.training.checks import doubtful_settings


def config(**sections: dict) -> Config:
    content = {"run": {"dir": Path("run")}, "data": {"path": Path("data")}}
    return Config.model_validate(content | {"distributed": {"device": "cpu"}} | sections)


def test_nothing_to_say_about_the_defaults() -> None:
    assert doubtful_settings(config()) == []
    every_key_set = config().model_dump()
    assert doubtful_settings(Config.model_validate(every_key_set)) == []


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ({"rule": "equal", "gamma": 0.5}, "balance.gamma has no effect with balance.rule equal"),
        ({"rule": "mgda", "weights": [1.0]}, "balance.weights has no effect"),
        ({"rule": "mgda", "boundary": "experts", "gram_rows": 8}, "balance.gram_rows has no"),
    ],
)
def test_settings_without_effect(balance: dict, expected: str) -> None:
    (warning,) = doubtful_settings(config(balance=balance))
    assert warning.startswith(expected)


def test_model_settings_without_effect() -> None:
    model = {"name": "mmoe", "num_shared_experts": 4, "stop_gradient": False, "layers": 2}
    assert doubtful_settings(config(model=model)) == [
        "model.layers has no effect with model.name mmoe",
        "model.stop_gradient has no effect with model.name mmoe",
    ]


def test_adam_on_cpu_is_costly() -> None:
    (warning,) = doubtful_settings(config(embedding={"optimizer": "adam"}))
    assert "every row of every table" in warning
