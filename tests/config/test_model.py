"""The ``model`` section: its keys, whose they are, and the model that comes of it."""

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stem_torchrec.analysis.compare.plan import Request, make_plan
from stem_torchrec.cli import main
from stem_torchrec.config import Config, build_model
from stem_torchrec.config.keys import all_keys
from stem_torchrec.config.reading import dump_config, load_config, validate
from stem_torchrec.errors import UserError
from stem_torchrec.nn import MODELS, Inputs, StemNetOptions
from tests.support.prepared import small_config, small_data

KEYS_OF_BEFORE = [
    *("name", "expert", "num_shared_experts", "num_task_experts", "expert_widths", "gate_widths"),
    *("tower_widths", "layers", "gate_input", "stop_gradient", "task_specific_features"),
    *("task_order", "calibrator_weight", "dropout"),
]
KEYS_SINCE = {"init": "xavier", "feature_gate_rank": 16, "task_groups": None, "decorrelation": 0.0}
"""With their defaults."""
OWN_MODEL = """
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import nn
from typing_extensions import Doc

from stem_torchrec.nn import Model, Options


@dataclass(frozen=True)
class LinearOptions(Options):
    scale: Annotated[int, Ge(1), Doc("what logits are multiplied by")] = 1
    order: Annotated[tuple[str, ...] | None, Doc("the tasks, for nothing")] = None


class Linear(Model):
    options_type = LinearOptions

    def __init__(self, inputs, options=LinearOptions()):
        super().__init__()
        if options.order is not None and set(options.order) != set(inputs.tasks):
            raise ValueError(f"order: {options.order}; allowed: {inputs.tasks}")
        self.scale = options.scale
        self.owners = {"shared": inputs.names}
        self.linear = nn.Linear(inputs.columns.width, len(inputs.tasks))

    def forward(self, pooled, dense):
        return self.scale * self.linear(torch.cat([pooled["shared"], dense], dim=1))

    def shared_parameters(self):
        return iter(())


class Unfinished(Model):
    pass


number = 3
"""


def config_with(**model: Any) -> Config:
    return validate({"run": {"dir": "run"}, "data": {"path": "data"}, "model": model})


@pytest.fixture
def own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Import path of a model that lies in the working directory."""
    (tmp_path / "linear_models.py").write_text(OWN_MODEL)
    (tmp_path / "broken_models.py").write_text("import json\n\n\nraise OSError('no such thing')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("linear_models", "broken_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "linear_models:Linear"


def test_every_key_of_before_is_a_key_with_the_models_that_have_it() -> None:
    keys = {key.name: key for key in all_keys()}
    assert {name for name in keys if name.startswith("model.")} == {
        f"model.{key}" for key in (*KEYS_OF_BEFORE, *KEYS_SINCE)
    }
    assert keys["model.layers"].description.startswith("me_ple, ple, stem_net: ")
    assert keys["model.dropout"].description == "dropout after each hidden layer, share"
    assert all(model in keys["model.name"].description for model in MODELS)
    assert keys["model.expert_widths"].default_text == "128,64"


def test_a_model_has_its_own_options() -> None:
    config = config_with(num_shared_experts=3, task_specific_features=["user"]).model
    assert config.options == StemNetOptions(num_shared_experts=3, task_specific_features=("user",))
    assert config.num_shared_experts == 3
    for name, model in MODELS.items():
        assert config_with(name=name).model.options == model.options_type()


def test_keys_of_other_models_have_no_effect_and_a_key_of_none_is_refused() -> None:
    config = config_with(name="mmoe", layers=2, calibrator_weight=0.1, num_shared_experts=4)
    assert config.model.without_effect() == ["calibrator_weight", "layers"]
    assert not hasattr(config.model.options, "layers")
    # A bound of another model's is not this one's.
    assert config_with(name="single_task", num_shared_experts=0).model.options.dropout == 0
    with pytest.raises(UserError, match=r"model\.layer: unknown key; did you mean model\.layers\?"):
        config_with(layer=2)
    with pytest.raises(UserError, match=r"model\.num_shared_experts: .*1, found 0"):
        config_with(name="mmoe", num_shared_experts=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_folder_of_before_is_read(name: str) -> None:
    """Its ``config.yaml`` has every key of the section, whatever the model."""
    before = config_with(name=name).model_dump(mode="json")
    assert {key: before["model"].pop(key) for key in KEYS_SINCE} == KEYS_SINCE
    assert set(before["model"]) == set(KEYS_OF_BEFORE)
    assert config_with(**before["model"]).model.without_effect() == []


def test_a_model_of_ones_own(tmp_path: Path, own_model: str) -> None:
    path = tmp_path / "config.yaml"
    content = {"run": {"dir": "r"}, "data": {"path": "d"}, "model": {"name": own_model, "scale": 2}}
    path.write_text(yaml.safe_dump(content))
    config = load_config(path, ["--model.order", "like,click", "--model.layers=3"])
    assert config.model.without_effect() == ["layers"]
    model = build_model(config.model, Inputs({"user": "user"}, 4, ("click", "like")))
    assert (type(model).__name__, model.scale) == ("Linear", 2)
    for again in (
        pickle.loads(pickle.dumps(config)),
        validate({**yaml.safe_load(dump_config(config, {})), "versions": None}),
    ):
        assert again.model.options == config.model.options
    with pytest.raises(UserError, match=r"model\.scale: .*or equal to 1, found 0"):
        load_config(path, ["--model.scale", "0"])
    with pytest.raises(UserError, match=r"model\.scal: unknown key; did you mean model\.scale"):
        load_config(path, ["--model.scal", "0"])
    with pytest.raises(UserError, match=r"model\.order: \('like',\); allowed: \('click', 'like'\)"):
        build_model(
            load_config(path, ["--model.order", "like"]).model,
            Inputs({"user": "user"}, 4, ("click", "like")),
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stemnet", r"'stemnet'.*stem_net.*my_pkg\.my_file:MyClass"),
        ("no_such_module:Linear", "the import fails: ModuleNotFoundError.*looked for"),
        ("broken_models:Linear", r"the import fails: OSError: no such thing.*line 4"),
        ("linear_models:Lineal", "has no Lineal; subclasses of Model in it: .*Linear"),
        ("linear_models:number", "is a int; allowed: a subclass of stem_torchrec.nn"),
        ("linear_models:LinearOptions", "is the class LinearOptions; allowed: a subclass"),
        ("linear_models:Unfinished", "does not define forward, shared_parameters"),
    ],
)
def test_a_name_without_a_model_is_one_message(
    own_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    with pytest.raises(UserError, match=rf"^model\.name: .*{message}"):
        config_with(name=name)
    path = small_config(tmp_path / "c.yaml", tmp_path, tmp_path / "run")
    assert main(["train", "--config", str(path), "--model.name", name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model.name: ")
    assert "Traceback" not in error


def test_models_of_ones_own_are_compared(tmp_path: Path, own_model: str) -> None:
    config = small_config(tmp_path / "c.yaml", small_data(tmp_path / "data"), tmp_path / "x")
    request = Request(config, ["mmoe", own_model], ["equal"], 1, tmp_path / "out")
    own = [f"{own_model}:model.scale=3", "mmoe:model.num_shared_experts=2"]
    runs = make_plan(Request(**(vars(request) | {"own": own}))).runs
    assert [run.config.model.name for run in runs] == ["mmoe", own_model]
    assert runs[1].config.model.options.scale == 3
    assert runs[0].config.model.options.num_shared_experts == 2
    with pytest.raises(UserError, match=r"--models: 'linear_models:Nobody'.*has no Nobody"):
        make_plan(Request(**(vars(request) | {"models": ["linear_models:Nobody"]})))
    with pytest.raises(UserError, match="--own: 'linear_models:Other' is not compared"):
        make_plan(Request(**(vars(request) | {"own": ["linear_models:Other:model.scale=3"]})))
