"""What ``import stem_torchrec as st`` offers: it is light, explained, and its examples run."""

import doctest
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import stem_torchrec as st
from tests.support.prepared import small_data

HEAVY = ("torch", "torchrec", "pydantic", "pyarrow", "duckdb", "numpy", "yaml")
# ``train`` first: the others read the run that it makes.
EXPLAINED = ("train", "load_run", "Run", "Schema", "ParquetReader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the examples start from: ``prepared/mine`` in the working directory."""
    folder = tmp_path_factory.mktemp("library")
    small_data(folder / "prepared" / "mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def examples(name: str) -> doctest.DocTest:
    """The examples of a public name and of its public methods, as one test."""
    found = doctest.DocTestFinder().find(getattr(st, name), name, globs={})
    found.sort(key=lambda test: (test.lineno or 0, test.name))
    parts = [example for test in found for example in test.examples]
    assert parts, f"{name} has no example"
    return doctest.DocTest(parts, {}, name, None, None, None)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import json, sys, stem_torchrec; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    loaded = json.loads(out)
    assert [name for name in loaded if name.partition(".")[0] in HEAVY] == []
    assert [name for name in loaded if name.startswith("stem_torchrec")] == ["stem_torchrec"]


def test_its_names_are_there_and_no_others() -> None:
    for name in st.__all__:
        assert getattr(st, name) is not None
    assert set(st.__all__) <= set(dir(st))
    with pytest.raises(AttributeError, match="trian"):
        _ = st.trian
    public = {name for name in st.__all__ if not inspect.ismodule(getattr(st, name))}
    assert public - {"__version__", "UserError"} == set(EXPLAINED)


@pytest.mark.parametrize("name", EXPLAINED)
def test_examples_in_docstrings_run(folder: Path, name: str) -> None:
    if name != "train" and not (folder / "runs" / "mine").exists():
        test_examples_in_docstrings_run(folder, "train")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    runner.run(examples(name), out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", EXPLAINED)
def test_every_public_method_is_explained(name: str) -> None:
    value = getattr(st, name)
    members = vars(value).items() if inspect.isclass(value) else ()
    own = [value, *(m for key, m in members if inspect.isfunction(m) and not key.startswith("_"))]
    for member in own:
        assert member.__doc__, member
