"""Raw files by name or pattern, and the names of their columns."""

import codecs
import csv
import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.describe import RawFormat

_HEAD_BYTES = 2**20


def find_files(sources: Sequence[str | Path]) -> tuple[Path, ...]:
    """Files, folders and patterns of either as files: sources in their order, files of one pattern
    by name, those of a folder by their path in it.

    Of a folder all files are taken that are in it or in partitions ``KEY=VALUE`` within, but for
    those whose name starts with a dot or an underscore.

    Raises:
        UserError: nothing is found, or what is found is no file or cannot be read.
    """
    paths: list[Path] = []
    for source in sources:
        path = Path(source).expanduser()
        found = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path)))]
        if not found:
            raise UserError(f"--source: no file {str(source)!r}")
        for place in found:
            inside = sorted(_files_in(place)) if place.is_dir() else [place]
            if not inside:
                raise UserError(f"--source: {str(place)!r} is a folder without files")
            paths += inside
    for path in paths:
        if not path.is_file():
            raise UserError(f"--source: {str(path)!r} is not a file; give files or patterns")
        if not os.access(path, os.R_OK):
            raise UserError(f"--source: {str(path)!r} may not be read")
        if not path.stat().st_size:
            raise UserError(f"--source: {str(path)!r} is empty")
    return tuple(paths)


def _files_in(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            if "=" in entry.name:
                yield from _files_in(entry)
        else:
            yield entry


def column_names(paths: Sequence[Path], raw_format: RawFormat) -> list[str]:
    """The columns of files that are read as one.

    Raises:
        UserError: headers differ, or a column has no name, another's, or is missing.
    """
    if not raw_format.header:
        return list(raw_format.columns or ())
    first = read_header(paths[0], raw_format)
    for path in paths[1:]:
        if (header := read_header(path, raw_format)) != first:
            raise UserError(
                f"{path}: its columns {', '.join(header)} are not those of {paths[0].name}: "
                f"{', '.join(first)}"
            )
    doubled = [name for name in first if [n.lower() for n in first].count(name.lower()) > 1]
    if doubled or "" in first:
        what = f"column {doubled[0]!r} occurs twice" if doubled else "a column has no name"
        raise UserError(f"{paths[0]}: {what} in the header {', '.join(first)}")
    for name in raw_format.columns or ():
        if name not in first:
            raise UserError(f"{paths[0]}: no column {name!r} in the header {', '.join(first)}")
    return first


def read_header(path: Path, raw_format: RawFormat) -> list[str]:
    """The values of the first line; compressed files are opened by their ending."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(_HEAD_BYTES)
        line = re.split(rb"\r\n|\n|\r", head.removeprefix(codecs.BOM_UTF8), maxsplit=1)[0].decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}, line 1: not UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if raw_format.quote is None or len(raw_format.delimiter) > 1:
        return line.split(raw_format.delimiter)
    rows = csv.reader([line], delimiter=raw_format.delimiter, quotechar=raw_format.quote)
    return next(rows, [])
