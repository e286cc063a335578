"""A rule of one's own, in the working directory, in every command that takes a run."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from examples import own_rule
from stem_torchrec.analysis.compare.plan import Request, make_plan
from stem_torchrec.cli import main
from tests.support.prepared import small_config, small_data

RULE = "rule_of_my_own:InverseNorm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(own_rule.__file__, folder / "rule_of_my_own.py")
    (folder / "fails.py").write_text("import nothing_of_that_name\n")
    small_data(folder / "data")
    small_config(folder / "c.yaml", folder / "data", folder / "run")
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("rule_of_my_own", None)


def test_trains_on_two_ranks_and_is_evaluated_and_analyzed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--balance.rule", RULE, "--balance.power", "0.5", "--train.max_steps", "3"]
    assert main(["train", "--config", "c.yaml", "--nproc", "2", *options]) == 0
    kept = yaml.safe_load((folder / "run" / "config.yaml").read_text())["balance"]
    assert (kept["rule"], kept["power"]) == (RULE, 0.5)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    weights = [json.loads(line)["balance"]["weight"] for line in lines if '"balance"' in line]
    assert len({round(weight, 6) for weight in weights[-1].values()}) == 2
    capsys.readouterr()
    assert main(["evaluate", "--run", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "eval"
    assert main(["analyze", "gates", "--runs", "run", "--out", "gates"]) == 0


def test_compares_with_the_packages_rules(folder: Path) -> None:
    plan = make_plan(Request(Path("c.yaml"), ["stem_net"], ["equal", RULE], 1, folder / "out"))
    assert [run.config.balance.rule for run in plan.runs] == ["equal", RULE]
    only = Request(
        Path("c.yaml"), ["stem_net"], [RULE], 1, folder / "out", vary=["balance.power=0.5;1"]
    )
    assert [run.config.balance.options.power for run in make_plan(only).runs] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("fails:Rule", ["ModuleNotFoundError: No module named 'nothing_of_that_name'", "fails.py"]),
        ("not_here:Rule", ["No module named 'not_here'"]),
        ("rule_of_my_own:Other", ["has no Other", "InverseNorm"]),
        ("rule_of_my_own:main", ["is a function"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan", "compare"])
def test_a_rule_that_cannot_be_had_is_one_message(
    command: str, rule: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "train": ["--balance.rule", rule],
        "plan": ["--balance.rule", rule],
        "compare": ["--models", "stem_net", "--seeds", "1", "--balance", rule, "--out", "compared"],
    }
    assert main([command, "--config", "c.yaml", *options[command]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: balance.rule: {rule!r}")
    assert error.count("\n") == 1
    for word in words:
        assert word in error
