"""Numbers, texts, lists and tensors as ``torch.save`` writes them; nothing else is ever loaded."""

import os
import re
import zipfile
from typing import IO, Any

import torch


class NotPlain(ValueError):
    """Not what a save writes; the message is one line."""


def load_plain(stream: IO[bytes]) -> Any:
    """``torch.load`` onto the host, of weights only.

    Raises:
        NotPlain: it holds an object of another kind, is compressed, or is damaged.
    """
    check_stored(stream)
    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # what is not plain may fail in any way
        raise NotPlain(reason(error)) from None


def check_stored(stream: IO[bytes]) -> None:
    """Refuse a file that would take more memory than it has bytes; the place in it stays.

    Raises:
        NotPlain: it is no archive of ``torch.save``, or parts of it are compressed or overlap.
    """
    start = stream.tell()
    num_bytes = stream.seek(0, os.SEEK_END)
    try:
        with zipfile.ZipFile(stream) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise NotPlain(f"no archive of torch.save ({error})") from None
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise NotPlain(f"{part.filename!r} is compressed, which torch.save does not do")
    if sum(part.file_size for part in parts) > num_bytes:
        raise NotPlain(f"its parts overlap: they are larger than its {num_bytes} bytes")
    stream.seek(start)


def reason(error: BaseException) -> str:
    """One line of what torch tells in many."""
    text = str(error)
    if named := re.search(r"GLOBAL (\S+) was not an allowed", text):
        return f"it names {named[1]}, which is no number, text or tensor"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
