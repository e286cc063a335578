"""Which files an export consists of, and whether they are as they were written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from stem_torchrec.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 1
"""Of the exports that are written."""
_PIECE_BYTES = 1 << 22


def write_manifest(folder: Path) -> None:
    """List every file of a folder with its size and SHA-256."""
    files = {
        file.relative_to(folder).as_posix(): _entry(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n")


def check_manifest(folder: Path, *, every_byte: bool = True) -> None:
    """Compare a folder's files with its manifest.

    Args:
        every_byte: else only whether they are there, in their sizes.

    Raises:
        UserError: there is no manifest, it is of another version, or a file lies outside of the
            folder, is missing or damaged.
    """
    for name, entry in _read(folder).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(f"{folder / MANIFEST}: {name!r} lies outside of the folder")
        file = folder / path
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{folder / MANIFEST}: {name!r} leads out of the folder")
        if not file.is_file():
            raise UserError(f"{file}: is missing; the export is not whole")
        found = _entry(file) if every_byte else {**entry, "bytes": file.stat().st_size}
        if found != entry:
            raise UserError(f"{file}: is damaged: it is not as {MANIFEST} says; export anew")


def version_of(folder: Path) -> str:
    """What tells an export from every other one: a hash of its manifest.

    Raises:
        UserError: there is none.
    """
    return hashlib.sha256(_bytes(folder)).hexdigest()[:16]


def _read(folder: Path) -> Mapping[str, dict[str, Any]]:
    try:
        content = json.loads(_bytes(folder))
        number, files = content["format"], dict(content["files"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{folder / MANIFEST}: is no manifest, or is damaged") from None
    if number != FORMAT:
        raise UserError(f"{folder}: an export of format {number!r}; this version reads {FORMAT}")
    return files


def _bytes(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        raise UserError(
            f"{str(folder)!r} is no export ({MANIFEST} is missing); stem-torchrec export makes one"
        ) from None


def _entry(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            digest.update(piece)
    return {"bytes": file.stat().st_size, "sha256": digest.hexdigest()}
