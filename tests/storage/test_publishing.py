"""Two folders that take each other's names."""

import sys
from pathlib import Path

import pytest

from stem_torchrec.storage.publishing import exchanged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")


def test_two_folders_take_each_other_s_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    assert exchanged(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "name").read_text() == "b"
    assert (tmp_path / "b" / "name").read_text() == "a"


def test_nothing_changes_where_one_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert not exchanged(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
