"""How much disk preparing takes for a while, estimated before it starts."""

from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.sql import fetch_one
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.raw.checks import CODECS
from stem_torchrec.prepare.tables.raw.files import RawFiles

# Of one value on disk at the worst moment: in the working file, sorted, written.
_BYTES_PER_VALUE = 8 + 8 + 4
# A text lies in the working file, in what sorting and grouping put aside, and in a vocabulary.
_COPIES_OF_TEXT = 3
_HEAD_BYTES = 2**22
_SAMPLED_FILES = 8


def needed_bytes(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, columns: Collection[Column]
) -> int:
    """Disk space for the rows of these columns, with texts as long as those of the first rows."""
    if raw.format.type == "parquet":
        rows = sum(pq.read_metadata(path).num_rows for path in raw.paths)
    else:
        rows = estimated_lines(raw.paths)
    text_bytes = _COPIES_OF_TEXT * _text_bytes(connection, raw, columns)
    return int(rows * (_BYTES_PER_VALUE * len(columns) + text_bytes))


def needed_bytes_of_lines(paths: Sequence[Path], num_columns: int) -> int:
    """Disk space for as many numbers in each line of files."""
    return estimated_lines(paths) * num_columns * _BYTES_PER_VALUE


def estimated_lines(paths: Sequence[Path]) -> int:
    """Lines of all files, from the heads of a few, decompressed where the name says so."""
    sampled = paths[:: -(-len(paths) // _SAMPLED_FILES)]
    heads = [_lines_and_bytes(path) for path in sampled]
    lines, num_bytes = map(sum, zip(*heads, strict=True))
    return round(lines * sum(path.stat().st_size for path in paths) / num_bytes)


def _lines_and_bytes(path: Path) -> tuple[int, int]:
    """Lines of a file's head, and the bytes of the file that hold it."""
    codec = CODECS.get(path.suffix)
    try:
        with pa.OSFile(str(path)) as file:
            stream = pa.CompressedInputStream(file, codec) if codec else file
            head = stream.read(_HEAD_BYTES)
            is_whole = len(head) < _HEAD_BYTES
            read_bytes = path.stat().st_size if is_whole else file.tell()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return max(1, head.count(b"\n"), head.count(b"\r")), read_bytes


def _text_bytes(
    connection: duckdb.DuckDBPyConnection, raw: RawFiles, columns: Collection[Column]
) -> float:
    """Mean bytes of a row's texts and lists."""
    texts = [column.sql for column in columns if column.is_text]
    if not texts:
        return 0.0
    lengths = " + ".join(f"coalesce(strlen(({sql})::VARCHAR), 0)" for sql in texts)
    return fetch_one(connection, f"SELECT avg({lengths}) FROM {raw.head()}")[0] or 0.0
