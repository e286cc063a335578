"""What ``stem_torchrec.nn`` offers: it is light, explained, and its examples run."""

import doctest
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys

import pytest

from stem_torchrec import nn

HEAVY = ("torchrec", "pydantic", "pyarrow", "duckdb", "fbgemm_gpu", "yaml")
FILES = [module.name for module in pkgutil.walk_packages(nn.__path__, f"{nn.__name__}.")]


def test_importing_it_loads_torch_alone() -> None:
    code = (
        "import json, sys, torch; before = set(sys.modules); import stem_torchrec.nn;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    loaded = json.loads(out)
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    ours = {name for name in loaded if name.startswith("stem_torchrec")}
    others = {name for name in ours if not name.startswith("stem_torchrec.nn")}
    assert others == {"stem_torchrec", "stem_torchrec.errors"}
    # Besides our own files a few of torch and the standard library.
    assert len(loaded) - len(ours) < 40, loaded


@pytest.mark.parametrize("name", FILES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    globs = {"torch": importlib.import_module("torch")} | vars(nn) | vars(module)
    assert doctest.testmod(module, globs=globs).failed == 0


@pytest.mark.parametrize("name", nn.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    value = getattr(nn, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert ">>>" in (value.__doc__ or "")
        assert value.__module__.startswith("stem_torchrec.nn")


def test_every_model_and_its_options_are_public() -> None:
    for model in nn.MODELS.values():
        assert getattr(nn, model.__name__) is model
        assert getattr(nn, model.options_type.__name__) is model.options_type


def test_every_model_is_final_and_lies_in_the_file_of_its_name() -> None:
    for name, model in nn.MODELS.items():
        assert model.__module__ == f"stem_torchrec.nn.models.{name}"
        assert model.__subclasses__() == []
        assert not inspect.isabstract(model)
