"""A file more in a folder is one more by name."""

import sys

import pytest

from stem_torchrec.nn.discovery import named_in

CLASS = """
from builtins import dict as Base
class {kind}(Base):
    name = {name!r}
class Shared(Base):
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    package = tmp_path / "some_kinds"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "b.py").write_text(CLASS.format(kind="Two", name="two"))
    (package / "a.py").write_text(CLASS.format(kind="One", name="one") + "from .b_help import *\n")
    (package / "b_help.py").write_text("from some_kinds.b import Two\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.startswith("some_kinds")]:
        del sys.modules[name]


def test_finds_each_where_it_is_defined(folder):
    found = named_in("some_kinds", dict)
    assert {name: kind.__name__ for name, kind in found.items()} == {"one": "One", "two": "Two"}
    assert list(found) == ["one", "two"]


def test_the_same_name_twice_is_refused(folder):
    (folder / "c.py").write_text(CLASS.format(kind="Three", name="one"))
    with pytest.raises(ValueError, match="'one' is the name of"):
        named_in("some_kinds", dict)
