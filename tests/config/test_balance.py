"""The ``balance`` section: its keys, what they do, and the rule that comes of it."""

import pickle
import sys
from typing import Any

import pytest

from stem_torchrec.balancing.rules import rules
from stem_torchrec.balancing.rules.multi_balance import MultiBalanceOptions, MultiBalanceRule
from stem_torchrec.config import BalanceConfig, Config
from stem_torchrec.config.keys import all_keys
from stem_torchrec.config.reading import dump_config, load_config, validate
from stem_torchrec.distributed.balance import rule_for
from stem_torchrec.errors import UserError

KEYS_OF_BEFORE = [
    *("rule", "boundary", "gram_rows", "gram_every"),
    *(
        "weights",
        "gamma",
        "rho",
        "beta",
        "matrix",
        "floor",
        "normalization",
        "cagrad_c",
        "torchjd_options",
    ),
    *("lr", "logit_decay", "temperature", "window", "mu", "scale_mode", "fairgrad_alpha"),
]
OWN_RULE = """
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from typing_extensions import Doc

from stem_torchrec.balancing import Options, Rule


@dataclass(frozen=True)
class HalvingOptions(Options):
    strength: Annotated[float, Gt(0), Doc("how strong")] = 0.5
    gamma: Annotated[float, Doc("something else than multi_balance's")] = 7.0


class Halving(Rule[HalvingOptions]):
    options_type = HalvingOptions

    def multipliers(self, situation, state, step):
        return self.options.strength * situation.active.double(), state


class Unfinished(Rule[Options]):
    pass
"""


def config_with(**balance: Any) -> Config:
    return validate({"run": {"dir": "run"}, "data": {"path": "data"}, "balance": balance})


def rule_with(num_tasks: int = 2, seed: int = 0, **balance: Any):
    return rule_for(config_with(**balance).balance, num_tasks, seed)


@pytest.fixture
def own_rule(tmp_path, monkeypatch) -> str:
    """Import path of a rule that lies in the working directory."""
    (tmp_path / "halving_rules.py").write_text(OWN_RULE)
    (tmp_path / "broken_rules.py").write_text("import json\n\n\nraise OSError('no such thing')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "halving_rules:Halving"
    for name in ("halving_rules", "broken_rules"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [name for name in rules() if name != "torchjd"])
def test_builds_every_rule(name):
    rule = rule_with(rule=name, seed=3, weights=(1.0, 0.0))
    assert type(rule) is rules()[name]
    assert rule.seed == 3


def test_options_are_those_of_the_rule():
    balance = config_with(rule="multi_balance", gamma=0.5, weights=[1, 2]).balance
    assert balance.options == MultiBalanceOptions(gamma=0.5)
    assert isinstance(rule_for(balance, 2), MultiBalanceRule)
    assert balance.without_effect() == ["weights"]


def test_keys_stay_those_of_before():
    names = [key.name for key in all_keys() if key.name.startswith("balance.")]
    assert sorted(names) == sorted(f"balance.{key}" for key in KEYS_OF_BEFORE)
    assert sorted(config_with().model_dump()["balance"]) == sorted(KEYS_OF_BEFORE)


def test_help_names_the_rules_and_whose_a_key_is():
    keys = {key.name: key.description for key in all_keys()}
    for name in rules():
        assert name in keys["balance.rule"]
    assert "my_pkg.my_file:" in keys["balance.rule"]
    assert keys["balance.gamma"].startswith("multi_balance: ")
    assert keys["balance.gram_every"].startswith("steps")


@pytest.mark.parametrize(
    ("balance", "words"),
    [
        ({"rule": "gradnorm"}, ["balance.rule", "gradnorm", *rules(), "torchjd:NAME", "my_pkg"]),
        ({"rule": "multibalance"}, ["balance.rule", "did you mean 'multi_balance'?"]),
        ({"rule": "torchjd"}, ["balance.rule", "torchjd:NAME"]),
        ({"rule": "torchjd:Nope"}, ["balance.rule", "torchjd:Nope", "torchjd:UPGrad"]),
        ({"rule": "torchjd:Krum"}, ["balance.torchjd_options", "n_byzantine"]),
        ({"rule": 3}, ["balance.rule", "3"]),
        ({"rule": "static"}, ["balance.weights", "None", "one per task"]),
        ({"rule": "static", "weights": [1.0]}, ["balance.weights", "1 weights", "2, one per task"]),
        ({"rule": "static", "weights": [1.0, 1.0, 1.0]}, ["balance.weights", "3 weights"]),
        ({"rule": "static", "weights": [1.0, -0.5]}, ["balance.weights", "-0.5", "equal to 0"]),
        ({"rule": "static", "weights": [1.0, float("nan")]}, ["balance.weights", "nan"]),
        ({"rule": "static", "weights": [1.0, float("inf")]}, ["balance.weights", "inf"]),
        ({"rule": "static", "weights": [0.0, 0.0]}, ["balance.weights", "above 0"]),
        ({"gamma": 0.0}, ["balance.gamma", "0.0", "greater than 0"]),
        ({"gamma": 1.5}, ["balance.gamma", "1.5", "less than or equal to 1"]),
        ({"gamma": float("nan")}, ["balance.gamma", "nan"]),
        ({"gamma": True}, ["balance.gamma", "True"]),
        ({"rho": -0.1}, ["balance.rho", "-0.1", "equal to 0"]),
        ({"rho": float("inf")}, ["balance.rho", "inf"]),
        ({"beta": 0.0}, ["balance.beta", "0.0"]),
        ({"beta": True}, ["balance.beta", "True"]),
        ({"matrix": "hessian"}, ["balance.matrix", "hessian", "cosine", "gram"]),
        ({"rule": "mgda", "normalization": "l1"}, ["balance.normalization", "l1", "loss+"]),
        ({"rule": "cagrad", "cagrad_c": 1.0}, ["balance.cagrad_c", "1.0", "less than 1"]),
        ({"rule": "cagrad", "cagrad_c": -0.1}, ["balance.cagrad_c", "-0.1"]),
        ({"gama": 0.1}, ["balance.gama: unknown key; did you mean balance.gamma?"]),
        ({"rule": "mgda", "gamma": "much"}, ["balance.gamma", "much"]),
    ],
)
def test_bad_settings_name_key_value_and_what_is_allowed(balance, words):
    with pytest.raises(UserError) as raised:
        rule_with(**({"rule": "multi_balance"} | balance))
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError, match=r"gram_every.*\n.*gamma"):
        config_with(rule="multi_balance", gram_every=0, gamma=2.0)


def test_edges_of_the_ranges_are_allowed():
    rule_with(1, rule="multi_balance", gamma=1.0, rho=0.0, beta=1e-3)
    rule_with(1, rule="cagrad", cagrad_c=0.0)


def test_file_of_before_is_read_without_a_warning(tmp_path):
    """A resolved config holds every key, those of other rules too."""
    for rule in ("equal", "mgda", "multi_balance"):
        config = config_with(rule=rule)
        (tmp_path / "config.yaml").write_text(dump_config(config, {}))
        again = load_config(tmp_path / "config.yaml")
        assert again.balance == config.balance
        assert again.balance.without_effect() == []


def test_bounds_hold_for_what_has_no_effect():
    assert config_with(rule="equal", gamma=0.5).balance.without_effect() == ["gamma"]
    with pytest.raises(UserError, match=r"balance\.gamma: .*found 7"):
        config_with(rule="equal", gamma=7)


def test_missing_package_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"pip install torchjd==\d+\.\d+\.\d+$"):
        rule_with(rule="torchjd:IMTLG")
    with pytest.raises(UserError, match=r"pip install 'torchjd\[quadprog-projector\]==\d"):
        rule_with(rule="torchjd:UPGrad")


def test_own_rule_with_options_of_its_own(own_rule):
    balance = config_with(rule=own_rule, strength=0.25).balance
    assert rule_for(balance, 2).options.strength == 0.25
    assert balance.options.gamma == 7.0
    assert balance.without_effect() == []
    assert pickle.loads(pickle.dumps(balance)) == balance
    with pytest.raises(UserError, match=r"balance.strength: .*greater than 0, found -1"):
        config_with(rule=own_rule, strength=-1)
    with pytest.raises(UserError, match=r"balance.strenght: unknown key"):
        config_with(rule=own_rule, strenght=1)
    with pytest.raises(UserError, match=r"balance.strength: unknown key"):
        config_with(rule="equal", strength=1)


def test_own_rule_on_the_command_line_and_back_from_the_run_folder(own_rule, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {dir: run}\ndata: {path: data}\n")
    for option in (["--balance.rule", own_rule], [f"--balance.rule={own_rule}"]):
        config = load_config(file, [*option, "--balance.strength", "0.125"])
        assert config.balance.options.strength == 0.125
    file.write_text(dump_config(config, {}))
    assert load_config(file).balance == config.balance
    assert load_config(file, ["--balance.strength=2"]).balance.options.strength == 2
    with pytest.raises(UserError, match=r"balance\.strength: unknown key"):
        load_config(file, ["--balance.rule", "equal", "--balance.strength", "1"])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere_at_all.rules:Mine", ["nowhere_at_all", "working directory", "PYTHONPATH"]),
        ("halving_rules:Doubling", ["no Doubling", "Halving"]),
        ("halving_rules:HalvingOptions", ["the class HalvingOptions", "balancing.rule.Rule"]),
        ("halving_rules:Unfinished", ["does not define multipliers"]),
        ("broken_rules:Mine", ["OSError: no such thing", "broken_rules.py", "line 4"]),
    ],
)
def test_own_rule_that_cannot_be_had_is_one_message(own_rule, path, words):
    with pytest.raises(UserError) as raised:
        config_with(rule=path)
    message = str(raised.value)
    assert message.startswith(f"balance.rule: {path!r}")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_bad_path_among_overrides_is_the_users_error(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {dir: run}\ndata: {path: data}\n")
    with pytest.raises(UserError, match=r"balance\.rule: 'nowhere_at_all:Mine'"):
        load_config(file, ["--balance.rule", "nowhere_at_all:Mine", "--balance.strength", "1"])


def test_another_rule_by_model_copy_has_its_own_options():
    balance = config_with(rule="multi_balance").balance
    assert balance.model_copy(update={"rule": "mgda"}).options == rules()["mgda"].options_type()
    assert isinstance(balance, BalanceConfig)
