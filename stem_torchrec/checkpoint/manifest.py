"""What a checkpoint holds and how to tell that it is whole.

``manifest.json`` is written last. It lists every file with its size and the CRC-32 of each block,
and ends with a checksum of itself. CRC-32 is the fastest checksum of the standard library (about
1 GiB/s a core); it finds every flip of up to 32 neighbouring bits and others but for 1 in 2^32.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from stem_torchrec.errors import StoreUnreachable, UserError
from stem_torchrec.storage.place import Place, replace_text

MANIFEST = "manifest.json"
FORMAT = 2
"""Of the checkpoints that are written. 1 had no number, and a pickle as its index."""
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
        about: step, world size, versions, plan, schema and whatever else the saver told.
        format: how the files are written; 1 to ``FORMAT`` can be read.
    """

    about: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    format: int = FORMAT

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)


def write_manifest(folder: Place, manifest: Manifest) -> None:
    """Write ``manifest.json`` through to the disk or store; it is whole or not there."""
    replace_text(folder / MANIFEST, _text(manifest), through=True)


def read_manifest(folder: Place) -> Manifest:
    """The manifest of a checkpoint whose files are there in their sizes; no content is read.

    Raises:
        Damaged: there is none, or it is not as it was written, or a file is missing or shorter.
        UserError: its format is not known here.
        StoreUnreachable: the store does not answer.
    """
    try:
        sizes = _sizes(folder)
        if MANIFEST not in sizes:
            raise Damaged(f"no {MANIFEST}")
        text = (folder / MANIFEST).read_bytes().decode()
    except StoreUnreachable:
        raise
    except (OSError, UserError, UnicodeDecodeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read: {error}") from None
    manifest = _parsed(text, folder)
    _compare_sizes(sizes, manifest.files)
    return manifest


def check_sizes(folder: Place, files: Sequence[FileEntry]) -> None:
    """Ask whether all files are there, in their sizes.

    Raises:
        Damaged: naming the first that is missing or has another size.
        OSError, UserError: the disk or store does not tell.
    """
    _compare_sizes(_sizes(folder), files)


def check_files(folder: Place, files: Sequence[FileEntry]) -> None:
    """Compare every byte of some files with the manifest.

    Raises:
        Damaged: naming the first file and block that differ.
        StoreUnreachable: the store does not answer.
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
        except StoreUnreachable:
            raise
        except (OSError, UserError) as error:
            return f"{file.name} cannot be read: {error}"
        stop = min(start + BLOCK_BYTES, file.size)
        return None if found == expected else f"{file.name}: bytes {start} to {stop} are damaged"

    with ThreadPoolExecutor(_THREADS) as threads:
        for problem in threads.map(check, jobs):
            if problem is not None:
                raise Damaged(problem)


def _sizes(folder: Place) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}


def _compare_sizes(sizes: Mapping[str, int], files: Sequence[FileEntry]) -> None:
    for file in files:
        if file.name not in sizes:
            raise Damaged(f"{file.name} is missing")
        if sizes[file.name] != file.size:
            raise Damaged(f"{file.name} has {sizes[file.name]} bytes, written were {file.size}")


def _parsed(text: str, folder: Place) -> Manifest:
    try:
        content = json.loads(text)
        checksum = content.pop("manifest_crc32")
        as_written = _with_checksum(content)
        number = content.get("format", 1)
        if as_written == text and not (type(number) is int and 1 <= number <= FORMAT):
            raise UserError(
                f"{folder}: a checkpoint of format {number}; this version reads 1 to {FORMAT}"
            )
        files = tuple(FileEntry(f["name"], f["size"], tuple(f["crc32"])) for f in content["files"])
        manifest = Manifest(dict(content["about"]), files, number)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Damaged(f"{MANIFEST} is damaged") from None
    if as_written != text or not isinstance(checksum, int):
        raise Damaged(f"{MANIFEST} is damaged: it does not match its own checksum")
    return manifest


def _text(manifest: Manifest) -> str:
    files = [file._asdict() for file in manifest.files]
    number = {"format": manifest.format} if manifest.format > 1 else {}
    return _with_checksum({"about": manifest.about, "files": files, **number})


def _with_checksum(content: Mapping[str, Any]) -> str:
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    return json.dumps({**content, "manifest_crc32": checksum}, indent=1, sort_keys=True) + "\n"


def _blocks(size: int) -> Iterator[int]:
    return iter(range(0, size, BLOCK_BYTES))


def _checksum(path: Place, start: int) -> int:
    checksum, left = 0, BLOCK_BYTES
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
            checksum = zlib.crc32(piece, checksum)
            left -= len(piece)
    return checksum
