"""What a checkpoint holds and how to tell that it is whole.

``manifest.json`` is written last. It lists every file with its size and the CRC-32 of each block,
and ends with a checksum of itself. CRC-32 is the fastest checksum of the standard library (about
1 GiB/s a core); it finds every flip of up to 32 neighbouring bits and others but for 1 in 2^32.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "manifest.json"
BLOCK_BYTES = 1 << 26
_THREADS = 2
_PIECE_BYTES = 1 << 22


class Damaged(Exception):
    """A checkpoint is not what its manifest says, or has none; the message says where."""


class FileEntry(NamedTuple):
    """One file of a checkpoint.

    Attributes:
        name: inside the checkpoint's folder.
        size: bytes.
        crc32: of each block of ``BLOCK_BYTES``, the last one shorter.
    """

    name: str
    size: int
    crc32: tuple[int, ...]


class Manifest(NamedTuple):
    """A checkpoint's files and where they come from.

    Attributes:
        about: step, world size, versions, plan and whatever else the saver told.
    """

    about: Mapping[str, Any]
    files: tuple[FileEntry, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)


def describe(folder: Path, names: Sequence[str]) -> list[FileEntry]:
    """The entries of some files, read from the disk."""
    sizes = [(folder / name).stat().st_size for name in names]
    jobs = [(folder / n, start) for n, s in zip(names, sizes, strict=True) for start in _blocks(s)]
    with ThreadPoolExecutor(_THREADS) as threads:
        checksums = threads.map(lambda job: _checksum(*job), jobs)
        return [
            FileEntry(name, size, tuple(next(checksums) for _ in _blocks(size)))
            for name, size in zip(names, sizes, strict=True)
        ]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` through to the disk; it is whole or not there."""
    aside = folder / f"{MANIFEST}.partial"
    with aside.open("w") as file:
        file.write(_text(manifest))
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files are there in their sizes; no content is read.

    Raises:
        Damaged: there is none, or it is not as it was written, or a file is missing or shorter.
    """
    try:
        text = (folder / MANIFEST).read_bytes().decode()
    except FileNotFoundError:
        raise Damaged(f"no {MANIFEST}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from None
    try:
        content = json.loads(text)
        files = tuple(FileEntry(f["name"], f["size"], tuple(f["crc32"])) for f in content["files"])
        manifest = Manifest(content["about"], files)
        as_written = _text(manifest)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if as_written != text:
        raise Damaged(f"{MANIFEST} is damaged: it does not match its own checksum")
    for file in manifest.files:
        _check_size(folder, file)
    return manifest


def check_files(folder: Path, files: Sequence[FileEntry]) -> None:
    """Compare every byte of some files with the manifest.

    Raises:
        Damaged: naming the first file and block that differ.
    """
    jobs = [
        (file, start, checksum)
        for file in files
        for start, checksum in zip(_blocks(file.size), file.crc32, strict=True)
    ]

    def check(job: tuple[FileEntry, int, int]) -> str | None:
        file, start, expected = job
        try:
            found = _checksum(folder / file.name, start)
        except OSError as error:
            return f"{file.name} cannot be read: {error}"
        stop = min(start + BLOCK_BYTES, file.size)
        return None if found == expected else f"{file.name}: bytes {start} to {stop} are damaged"

    for file in files:
        _check_size(folder, file)
    with ThreadPoolExecutor(_THREADS) as threads:
        for problem in threads.map(check, jobs):
            if problem is not None:
                raise Damaged(problem)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names through to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_size(folder: Path, file: FileEntry) -> None:
    try:
        size = (folder / file.name).stat().st_size
    except OSError:
        raise Damaged(f"{file.name} is missing") from None
    if size != file.size:
        raise Damaged(f"{file.name} has {size} bytes, written were {file.size}")


def _text(manifest: Manifest) -> str:
    content = {"about": manifest.about, "files": [file._asdict() for file in manifest.files]}
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    return json.dumps(content | {"manifest_crc32": checksum}, indent=1, sort_keys=True) + "\n"


def _blocks(size: int) -> Iterator[int]:
    return iter(range(0, size, BLOCK_BYTES))


def _checksum(path: Path, start: int) -> int:
    checksum, left = 0, BLOCK_BYTES
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
            checksum = zlib.crc32(piece, checksum)
            left -= len(piece)
    return checksum
