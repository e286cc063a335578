"""Where predictions are written: a Parquet file per input file, there once it is whole."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stem_torchrec.errors import UserError
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.place import replace_text

REQUEST = "_predict.json"  # readers of Parquet folders pass over names with _
_ROW_GROUP_ROWS = 1 << 17
_PARTIAL = ".partial"


def open_out(out: Path, request: Mapping[str, Any], names: Sequence[str]) -> int:
    """Make the folder of the predictions; how many of the files, in their order, are there.

    Raises:
        UserError: the folder holds something else than an interrupted run of the same request.
    """
    text = json.dumps(request, indent=1, sort_keys=True) + "\n"
    with usable("--out", out):
        if out.exists() and not out.is_dir():
            raise UserError(f"--out: {str(out)!r} is a file; a folder is made")
        is_new = not out.exists() or not any(out.iterdir())
        if not is_new and not _is(out / REQUEST, text):
            raise UserError(
                f"--out: {str(out)!r} holds something else than predictions of the same run, "
                "checkpoint, data and columns; choose another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        if is_new:
            replace_text(out / REQUEST, text)
        return next((k for k, name in enumerate(names) if not (out / name).exists()), len(names))


class PredictionFiles:
    """Takes rows file by file, in order, and publishes each file when the next one begins.

    Args:
        names: below ``out``, by file.
        first: files before it are there and are left alone.
    """

    def __init__(self, out: Path, names: Sequence[str], first: int) -> None:
        self._out, self._names, self._file = out, names, first
        self._first = first
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []

    def add(self, file: int, table: pa.Table) -> None:
        """The next rows, of one file."""
        if file < self._first:
            return
        if file != self._file:
            self.close()
            self._file = file
        self._pending.append(table)
        if sum(part.num_rows for part in self._pending) >= _ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Publish the file that is being written, which has all its rows."""
        if not self._pending and self._writer is None:
            return
        self._flush()
        assert self._writer is not None
        self._writer.close()
        self._writer = None
        final = self._out / self._names[self._file]
        aside = _aside(final)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(final)

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending).combine_chunks()
        self._pending = []
        if self._writer is None:
            aside = _aside(self._out / self._names[self._file])
            aside.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(aside, table.schema, write_page_checksum=True)
        self._writer.write_table(table, _ROW_GROUP_ROWS)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}{_PARTIAL}")


def _is(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except (OSError, ValueError):
        return False
