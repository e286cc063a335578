"""What DuckDB lets pass in raw files without a word: damaged compression, types that change."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.data.parquet_file import type_family
from stem_torchrec.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd"}  # those that DuckDB knows by their ending
_CHUNK_BYTES = 2**20


def compressed(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix in CODECS]


def verify_compressed(paths: Sequence[Path], threads: int) -> None:
    """Decompress the files once; their ends and checksums are what DuckDB does not look at.

    Raises:
        UserError: a file is cut off, damaged, or not compressed as its name says.
    """
    ended = Event()
    with ThreadPoolExecutor(threads) as pool:
        try:
            list(pool.map(partial(_verify, ended), compressed(paths)))
        except BaseException:  # a damaged file, or a signal: the others need not wait for their end
            ended.set()
            raise


def _verify(ended: Event, path: Path) -> None:
    codec = CODECS[path.suffix]
    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, codec) as stream:
            while stream.read(_CHUNK_BYTES) and not ended.is_set():
                pass
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: damaged {codec} file ({error})") from None


def refuse_changed_types(paths: Sequence[Path], columns: Collection[str]) -> None:
    """Of Parquet files; DuckDB casts to the first file's types, and so rounds 0.5 to an integer.

    Raises:
        UserError: a column is missing in a file, or is of another type than in the first.
    """
    first, first_path = pq.read_schema(paths[0]), paths[0]
    for path in paths[1:]:
        found = pq.read_schema(path)
        for name in sorted(columns):
            if name not in found.names:
                raise UserError(f"{path}: column {name!r} is missing; {first_path} has it")
            types = found.field(name).type, first.field(name).type
            if type_family(types[0]) != type_family(types[1]):
                raise UserError(
                    f"{path}: column {name!r} has type {types[0]}; {first_path} has {types[1]}"
                )
