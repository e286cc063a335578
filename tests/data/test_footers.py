"""Footers of many files are read once, until a file or the purpose changes."""

import json

import pytest

from stem_torchrec.data import footers
from stem_torchrec.data.footers import Footer, read_footers


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(footers, "MIN_FILES", 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    made = [tmp_path / "data" / f"{number}.parquet" for number in range(4)]
    for number, file in enumerate(made):
        file.write_bytes(bytes(number))
    return made


class Counting:
    def __init__(self):
        self.read = []

    def __call__(self, file):
        self.read.append(file.name)
        return Footer([int(file.stem), 7], file.stem)

    def take(self):
        names, self.read = sorted(self.read), []
        return names


ROWS = [([number, 7], str(number)) for number in range(4)]


def test_only_what_changed_is_read_again(files):
    read = Counting()
    for _ in range(2):
        assert read_footers(files, read, "a") == ROWS
    assert read.take() == [file.name for file in files]
    files[2].write_bytes(b"longer than before")
    assert read_footers(files, read, "a") == ROWS
    assert read.take() == ["2.parquet"]
    assert read_footers(files, read, "b") == ROWS
    assert read.take() == [file.name for file in files]


def test_a_part_of_the_files_leaves_the_others_remembered(files):
    read = Counting()
    read_footers(files, read, "a")
    assert read_footers(files[:3], read, "a") == ROWS[:3]
    assert read_footers(files, read, "a") == ROWS
    assert len(read.take()) == 4


def test_few_files_are_not_remembered(files, tmp_path):
    assert read_footers(files[:2], Counting(), "a") == ROWS[:2]
    assert not (tmp_path / "cache").exists()


def test_a_refused_file_is_not_remembered(files, tmp_path):
    def refuse(file):
        raise ValueError(file.name)

    with pytest.raises(ValueError, match=r"0\.parquet"):
        read_footers(files, refuse, "a")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", ["", "{", json.dumps({"no": "file"})])
def test_a_damaged_cache_is_read_over(files, tmp_path, content):
    read = Counting()
    read_footers(files, read, "a")
    (cache,) = (tmp_path / "cache").rglob("*.json")
    cache.write_text(content)
    assert read_footers(files, read, "a") == ROWS
    assert len(read.take()) == 8


def test_a_home_that_cannot_be_written(files, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert read_footers(files, Counting(), "a") == ROWS
