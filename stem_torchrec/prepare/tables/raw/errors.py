"""DuckDB's errors about raw files in our words: file, line, what was found."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.tables.raw.checks import verify_compressed

_CSV_ERROR = re.compile(r"CSV Error on Line: (\d+)\n(.*)", re.S)
_FILE = re.compile(r"^\s*file = (.*)$", re.M)
_SHOWN = 80
_CHUNK_BYTES = 2**20


@contextmanager
def readable_errors(paths: Sequence[Path]) -> Iterator[None]:
    """Turn DuckDB's errors about the content of raw files into UserErrors.

    Raises:
        UserError: a line has another number of columns or is not UTF-8, or a file is damaged.
    """
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.IOException):
            verify_compressed(paths, threads=1)  # the error may not say which file it is
        if message := _message(str(error), paths):
            raise UserError(message) from None
        raise


def _message(text: str, paths: Sequence[Path]) -> str | None:
    if csv_error := _CSV_ERROR.search(text):
        named = _FILE.search(text)
        path = named.group(1) if named else str(paths[0])
        return f"{path}, line {csv_error.group(1)}: {_reason(csv_error.group(2))}"
    if "CSV" in text or "csv" in text:
        named = _FILE.search(text)
        path = Path(named.group(1)) if named else paths[0]
        return f"{path}: no delimited file that can be read{_line_ends(path)}"
    if re.search(r"parquet|magic bytes|Snappy|TProtocol|Schema mismatch", text, re.I):
        return f"{_name_of_parquet(text, paths)}: {text.splitlines()[0].partition(': ')[2]}"
    return None


def _line_ends(path: Path) -> str:
    """How the lines end, where they do in several ways."""
    counts = dict.fromkeys((r"\r\n", r"\n", r"\r"), 0)
    last = b""
    with pa.input_stream(str(path), compression="detect") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            pairs = (last + chunk).count(b"\r\n")
            counts[r"\r\n"] += pairs
            counts[r"\n"] += chunk.count(b"\n") - pairs
            counts[r"\r"] += chunk.count(b"\r") - pairs
            last = chunk[-1:] if chunk.endswith(b"\r") else b""
    found = [f"{count:,} × {end}" for end, count in counts.items() if count]
    if len(found) < 2:
        return ": quotes or delimiters are not as format says"
    return f": its lines end in several ways ({', '.join(found)}), or values hold them unquoted"


def _reason(text: str) -> str:
    original, _, rest = text.partition("\n")
    shown = original.partition(": ")[2]
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
    if counts := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", rest):
        return f"{counts.group(2)} columns, expected {counts.group(1)}; found {shown!r}"
    if "unicode" in rest or "utf-8" in rest:
        return f"not UTF-8; found {shown!r}"
    return f"{rest.splitlines()[0] if rest else 'malformed'}; found {shown!r}"


def _name_of_parquet(text: str, paths: Sequence[Path]) -> str:
    return next((str(path) for path in paths if str(path) in text), str(paths[0]))
