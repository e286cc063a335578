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
# What other files than delimited ones begin with.
_OTHER = {
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PAR1": "Parquet",
}


def compressed(paths: Sequence[Path]) -> list[Path]:
    return [path for path in paths if path.suffix in CODECS]


def refuse_other_compression(paths: Sequence[Path]) -> None:
    """Of delimited files: DuckDB knows gzip and zstd, by their endings.

    Raises:
        UserError: a file is compressed otherwise, or does not say by its ending that it is.
    """
    for path in paths:
        if path.suffix in CODECS:
            continue
        with path.open("rb") as file:
            head = file.read(8)
        if kind := next((k for magic, k in _OTHER.items() if head.startswith(magic)), None):
            raise UserError(
                f"{path}: is a {kind} file by its content; allowed are plain text, gzip (.gz) and "
                "zstd (.zst)" + ", or format.type: parquet" * (kind == "Parquet")
            )


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
    for path in paths:
        found = pq.read_schema(path)
        for name in sorted(columns):
            if found.names.count(name) != 1:
                what = "occurs twice" if name in found.names else "is missing"
                raise UserError(f"{path}: column {name!r} {what}; other files have it once")
            types = found.field(name).type, first.field(name).type
            if type_family(types[0]) != type_family(types[1]):
                raise UserError(
                    f"{path}: column {name!r} has type {types[0]}; {first_path} has {types[1]}"
                )
