"""MultiBalance's ablation: rules beside equal weights with the same learner, folder and seed."""

import json
from pathlib import Path
from typing import Any

import pytest
from multi_balance import LEARNERS, RULES, Training, main, summary

from stem_torchrec.errors import UserError
from tests.support.prepared import small_config, small_data


def line(valid: float, test: float) -> dict[str, Any]:
    balance = {"weight": [1.0, test]}
    own = {"auc_mean": test, "auc": {"click": test}, "balance": balance}
    return {"best": {"valid": {"auc_mean": valid}, "test": own}}


def test_a_rule_is_compared_at_its_own_best_rates() -> None:
    wanted = [
        Training(Path("data/mine"), "sgd", rule, point, seed)
        for rule in ("equal", "experts")
        for point in (0, 1)
        for seed in (0, 1, 2)
    ]
    figures = {
        ("equal", 0): (0.6, 0.5),
        ("equal", 1): (0.5, 0.9),
        ("experts", 0): (0.5, 0.9),
        ("experts", 1): (0.6, 0.75),
    }
    lines = {t.key: line(*figures[t.rule, t.point]) for t in wanted}
    lines[Training(Path("data/mine"), "sgd", "experts", 0, 2).key] = {"failure": "no"}
    equal, balanced = summary(wanted, lines)
    assert (equal["point"], equal["auc_mean"], equal["gain"]) == (0, 0.5, 0)
    assert (balanced["point"], balanced["seeds"], balanced["gain"]) == (1, [0, 1], 0.25)
    assert balanced["gain_by_task"] == {"click": 0.25}
    assert balanced["weight"] == [1.0, 0.75]


def test_all_rules_are_trained_on_a_folder(tmp_path: Path) -> None:
    file = small_config(tmp_path / "config.yaml", small_data(tmp_path / "data"), tmp_path / "run")
    arguments = ["--data", str(tmp_path / "data"), "--config", str(file), "--out"]
    arguments += [str(tmp_path / "out"), "--seeds", "1", "--processes", "0"]
    main([*arguments, "--learners", "undertrained"])
    rows = json.loads((tmp_path / "out" / "multi_balance.json").read_text())["rows"]
    assert [(row["rule"], row["seeds"]) for row in rows] == [(rule, [0]) for rule in RULES]
    with pytest.raises(UserError, match=r"model\.name: 'mmo'"):
        main([*arguments, "--model", "mmo"])
    assert LEARNERS["sgd"]
