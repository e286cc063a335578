"""The examples on models run, and do what they say."""

import json
from pathlib import Path

import pytest
import torch

from examples import own_model, stem_net_plain_pytorch
from stem_torchrec.cli import main
from stem_torchrec.nn import Inputs
from tests.support.prepared import small_config, small_data

EXAMPLES = Path(own_model.__file__).parent


def test_stem_net_learns_in_a_plain_script(capsys: pytest.CaptureFixture[str]) -> None:
    before = stem_net_plain_pytorch.main(steps=1)
    after = stem_net_plain_pytorch.main(steps=100)
    assert (after < 0.5 * before).all()
    assert "step 50: losses" in capsys.readouterr().out


def test_a_task_of_ones_own_model_has_tables_of_its_own() -> None:
    inputs = Inputs({"user": "user"}, dim=4, tasks=("click", "like"))
    model = own_model.Residual(inputs)
    pooled = {owner: torch.randn(5, 4, requires_grad=True) for owner in model.owners}
    logits = model(pooled, torch.empty(5, 0))
    click = torch.autograd.grad(logits[:, 0].sum(), [*pooled.values()], materialize_grads=True)
    assert [bool((gradient != 0).any()) for gradient in click] == [True, True, False]
    assert model.ownership()["own.last.bias"].dims == {0: ("click", "like")}


def test_ones_own_model_is_trained_balanced_and_evaluated_on_two_ranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), tmp_path / "run")
    options = ["--model.name", "examples.own_model:Residual", "--model.width", "8"]
    options += ["--balance.rule", "multi_balance"]
    assert main(["train", "--config", str(config), "--nproc", "2", *options]) == 0
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--json", "--nproc", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["auc"] == last["auc"]


@pytest.mark.parametrize("name", ["stem_net_plain_pytorch.py", "own_model.py"])
def test_examples_stay_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
