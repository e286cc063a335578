"""From the ``balance`` section to a rule."""

import sys
from dataclasses import dataclass, field, replace

import pytest

from stem_torchrec.balancing.rules import RULES, SETTINGS, RuleSettings, rule_for, settings_of
from stem_torchrec.errors import UserError


@dataclass(frozen=True)
class Settings:
    rule: str = "multi_balance"
    weights: tuple[float, ...] | None = None
    gamma: float = 0.01
    rho: float = 0.1
    beta: float | None = None
    matrix: str = "cosine"
    normalization: str = "none"
    cagrad_c: float = 0.5
    torchjd_options: dict[str, float] = field(default_factory=dict)


def with_(**changes: object) -> RuleSettings:
    return replace(Settings(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RULES)
def test_builds_every_rule(name):
    rule = rule_for(with_(rule=name, weights=(1.0, 0.0)), num_tasks=2, seed=3)
    assert type(rule) is RULES[name]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "gradnorm"}, ["balance.rule", "gradnorm", *RULES, "torchjd:NAME"]),
        ({"rule": "static"}, ["balance.weights"]),
        (
            {"rule": "static", "weights": (1.0,)},
            ["balance.weights", "1 weights", "2, one per task"],
        ),
        ({"rule": "static", "weights": (1.0, 1.0, 1.0)}, ["balance.weights", "3 weights"]),
        ({"rule": "static", "weights": (1.0, -0.5)}, ["balance.weights", "-0.5", ">= 0"]),
        ({"rule": "static", "weights": (1.0, float("nan"))}, ["balance.weights", "nan"]),
        ({"rule": "static", "weights": (1.0, float("inf"))}, ["balance.weights", "inf"]),
        ({"rule": "static", "weights": (0.0, 0.0)}, ["balance.weights", "above 0"]),
        ({"gamma": 0.0}, ["balance.gamma", "0.0", "at most 1"]),
        ({"gamma": 1.5}, ["balance.gamma", "1.5"]),
        ({"gamma": float("nan")}, ["balance.gamma", "nan"]),
        ({"rho": -0.1}, ["balance.rho", "-0.1", ">= 0"]),
        ({"rho": float("inf")}, ["balance.rho", "inf"]),
        ({"beta": 0.0}, ["balance.beta", "0.0", "null"]),
        ({"beta": float("nan")}, ["balance.beta", "nan"]),
        ({"matrix": "hessian"}, ["balance.matrix", "hessian", "cosine, gram"]),
        ({"rule": "mgda", "normalization": "l1"}, ["balance.normalization", "l1", "loss+"]),
        ({"rule": "cagrad", "cagrad_c": 1.0}, ["balance.cagrad_c", "1.0", "below 1"]),
        ({"rule": "cagrad", "cagrad_c": -0.1}, ["balance.cagrad_c", "-0.1"]),
    ],
)
def test_bad_settings_name_key_value_and_what_is_allowed(changes, words):
    with pytest.raises(UserError) as raised:
        rule_for(with_(**changes), num_tasks=2)
    for word in words:
        assert word in str(raised.value)


def test_edges_of_the_ranges_are_allowed():
    rule_for(with_(gamma=1.0, rho=0.0, beta=1e-3), num_tasks=1)
    rule_for(with_(rule="cagrad", cagrad_c=0.0), num_tasks=1)


def test_settings_that_matter():
    assert settings_of("multi_balance") == ("gamma", "rho", "beta", "matrix")
    assert settings_of("torchjd:UPGrad") == ("torchjd_options",)
    assert settings_of("equal") == ()
    used = {name for rule in (*RULES, "torchjd:x") for name in settings_of(rule)}
    assert used == set(SETTINGS)


def test_missing_package_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"pip install torchjd==\d+\.\d+\.\d+$"):
        rule_for(with_(rule="torchjd:IMTLG"), num_tasks=2)
    with pytest.raises(UserError, match=r"pip install 'torchjd\[quadprog-projector\]==\d"):
        rule_for(with_(rule="torchjd:UPGrad"), num_tasks=2)
