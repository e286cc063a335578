"""No damaged checkpoint is ever loaded: every byte range flipped or cut off, every file missing."""

import errno
import io
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from stem_torchrec.checkpoint import files as files_of_checkpoint
from stem_torchrec.checkpoint import manifest as manifests
from stem_torchrec.checkpoint.files import Files, Reader, Writer
from stem_torchrec.checkpoint.folders import FOLDER, newest, newest_valid, saved_steps
from stem_torchrec.checkpoint.index import read_index
from stem_torchrec.checkpoint.load import read
from stem_torchrec.checkpoint.manifest import (
    Damaged,
    Manifest,
    check_files,
    read_manifest,
    write_manifest,
)
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.errors import CheckpointError, StoreUnreachable, UserError

FILES = ("__0_0.distcp", "index.json", "rank_0.pt", "manifest.json")
PARTS = 16


def write(folder: Path, step: int) -> Path:
    """A checkpoint as torch.distributed.checkpoint writes it, with a manifest."""
    path = folder / FOLDER / f"step_{step}"
    state = {"table": torch.rand(300, 4), "position": {"step": step}}
    writer = Writer(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(state, storage_writer=writer, no_dist=True)
    own = io.BytesIO()
    torch.save({"rng": torch.get_rng_state()}, own)
    writer.write("rank_0.pt", own.getvalue())
    assert {entry.name for entry in writer.entries} == set(FILES[:3])
    write_manifest(path, Manifest({"step": step}, writer.entries))
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write(folder, 1)
    write(folder, 2)
    return folder


@pytest.fixture
def run_dir(two: Path, tmp_path: Path) -> Path:
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def damage(path: Path, kind: str, part: int) -> None:
    content = bytearray(path.read_bytes())
    start = len(content) * part // PARTS
    stop = max(start + 1, len(content) * (part + 1) // PARTS)
    if kind == "cut off":
        del content[start:]
    elif kind == "taken out":
        del content[start:stop]
    elif kind == "one bit":
        content[start] ^= 1
    else:
        content[start:stop] = bytes(byte ^ 0xFF for byte in content[start:stop])
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut off", "taken out", "flipped", "one bit"])
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("file", FILES)
def test_the_one_before_is_taken(
    run_dir: Path,
    alone: Any,
    caplog: pytest.LogCaptureFixture,
    file: str,
    part: int,
    kind: str,
) -> None:
    damage(run_dir / FOLDER / "step_2" / file, kind, part)
    assert newest_valid(run_dir, alone).name == "step_1"
    (line,) = caplog.messages
    assert line.startswith("checkpoint passed over: step_2: ")
    assert file in line


@pytest.mark.parametrize("file", FILES)
def test_a_file_is_missing(run_dir: Path, alone: Any, file: str) -> None:
    (run_dir / FOLDER / "step_2" / file).unlink()
    assert newest_valid(run_dir, alone).name == "step_1"
    assert saved_steps(run_dir / FOLDER) == [1]
    assert newest(run_dir).name == "step_1"


def test_an_undamaged_one_is_taken(
    run_dir: Path, alone: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (run_dir / FOLDER / "step_3").mkdir()
    shutil.copytree(run_dir / FOLDER / "step_2", run_dir / FOLDER / "step_4.partial")
    with caplog.at_level(logging.WARNING):
        assert newest_valid(run_dir, alone).name == "step_2"
    assert caplog.messages == ["checkpoint passed over: step_3: no manifest.json"]


def test_one_that_was_being_replaced_is_taken(run_dir: Path, alone: Any) -> None:
    old = run_dir / FOLDER / "step_2.replaced"
    (run_dir / FOLDER / "step_2").rename(old)
    assert newest_valid(run_dir, alone) == old
    assert saved_steps(run_dir / FOLDER) == [1, 2]


def test_none_is_valid(run_dir: Path, alone: Any) -> None:
    for step in (1, 2):
        damage(run_dir / FOLDER / f"step_{step}" / "__0_0.distcp", "flipped", 0)
    with pytest.raises(UserError, match=r"no valid checkpoint.*step_2: .*; step_1: __0_0"):
        newest_valid(run_dir, alone)


def test_the_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifests, files_of_checkpoint):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1000)
    writer = Writer(tmp_path)
    with writer.fs.create_stream(tmp_path / "file", "wb") as stream:
        for size in (300, 0, 1900, 300):
            stream.write(bytes(size))
    files = writer.entries
    assert [(file.size, len(file.crc32)) for file in files] == [(2500, 3)]
    check_files(tmp_path, files)
    (tmp_path / "file").write_bytes(bytes(2400) + b"1" + bytes(99))
    with pytest.raises(Damaged, match="bytes 2000 to 2500 are damaged"):
        check_files(tmp_path, files)


def test_a_manifest_tells_what_it_was_told(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write("empty", b"")
    written = Manifest({"step": 3, "plan": {"é": "row_wise"}}, writer.entries)
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written


def test_a_sync_takes_what_is_buffered_too(tmp_path: Path) -> None:
    """``torch.distributed.checkpoint`` syncs a file by its number, without a flush."""
    with Files().create_stream(tmp_path / "file", "wb") as stream:
        stream.write(b"content")
        assert os.fstat(stream.fileno()).st_size == 7


class Full:
    """A file on a disk with little room, which is named like one."""

    name = "file"
    room = 500

    @contextmanager
    def open(self, mode: str) -> Iterator[Any]:
        yield self

    def write(self, content: bytes) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(content)


def test_a_full_disk_is_what_a_failed_save_tells_of() -> None:
    """Where ``torch.save`` would say that its position in the file is unexpected."""
    with (
        pytest.raises(OSError, match="No space left on device"),
        Files().create_stream(Full(), "wb") as stream,
    ):
        torch.save(torch.zeros(300), stream)


def test_a_file_that_cannot_be_read_once_all_are_compared(
    two: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load ends with one line and the right exit code."""
    folder = two / FOLDER / "step_2"
    state, index = {"table": torch.zeros(300, 4)}, read_index(folder)
    read(folder, index, state, alone)
    for error, expected in (
        (StoreUnreachable("s3://b: unreachable"), pytest.raises(StoreUnreachable, match=r"^s3:")),
        (OSError("torn"), pytest.raises(CheckpointError, match=r"step_2: rank 0: OSError: torn$")),
    ):

        def refuse(self: object, stream: object, info: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Reader, "_slice_file", refuse)
        with expected:
            read(folder, index, state, alone)
