"""Files whose rows are to be predicted: prepared ones, or raw ones through the run's encoder."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import pyarrow as pa

from stem_torchrec.data.manifest import check_type, column_uses, split_files
from stem_torchrec.data.parquet_file import open_parquet_file, unreadable
from stem_torchrec.data.schema import SCHEMA_FILE, SPLITS, Schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.encode import RawEncoder
from stem_torchrec.prepare.tables.raw.batches import raw_columns, raw_tables
from stem_torchrec.storage.place import Place, relative

BLOCK_ROWS = 1 << 16
"""Most rows of a table that is read at once from raw files."""


class Rows(NamedTuple):
    """Some rows of one file.

    Attributes:
        columns: the features, as a prepared split has them.
        kept: columns to be passed through.
    """

    columns: pa.Table
    kept: pa.Table

    def cut(self, start: int, num_rows: int) -> "Rows":
        return Rows(self.columns.slice(start, num_rows), self.kept.slice(start, num_rows))


class InputFiles(Protocol):
    """Files in their order."""

    @property
    def names(self) -> Sequence[str]:
        """Of the predictions' files, by file."""
        ...

    @property
    def num_rows(self) -> Sequence[int] | None:
        """By file; None where nobody has counted them."""
        ...

    def rows(self, file: int) -> Iterator[Rows]:
        """A file's rows in their order, a part at a time; at least one part, maybe of no row.

        Raises:
            UserError: the file is damaged, or a value is not allowed.
        """
        ...


class PreparedFiles:
    """Files of a prepared split. Labels need not be there.

    Args:
        keep: columns to pass through.

    Raises:
        UserError: a file is missing or unreadable, or a column is missing or of another type.
    """

    def __init__(self, folder: Place, split: str, schema: Schema, keep: Sequence[str]) -> None:
        self._files = split_files(folder, split)
        self._features = [feature.name for feature in schema.features]
        self._keep = list(keep)
        self.names = [relative(file, folder / split).as_posix() for file in self._files]
        uses = [use for use in column_uses(schema) if use.feature is not None]
        self.num_rows = []
        for file in self._files:
            try:
                with open_parquet_file(file) as opened:
                    found, num_rows = opened.schema_arrow, opened.metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise unreadable(file, error) from None
            for use in uses:
                check_type(file, found, use)
            _require_kept(self._keep, found.names, str(file))
            self.num_rows.append(num_rows)

    def rows(self, file: int) -> Iterator[Rows]:
        path = self._files[file]
        wanted = list(dict.fromkeys([*self._features, *self._keep]))
        try:
            with open_parquet_file(path, verify=True) as opened:
                for group in range(opened.num_row_groups):
                    yield self._part(opened.read_row_group(group, columns=wanted))
                if not opened.num_row_groups:
                    yield self._part(opened.schema_arrow.empty_table())
        except (pa.ArrowException, OSError) as error:
            raise unreadable(path, error) from None

    def _part(self, table: pa.Table) -> Rows:
        return Rows(table.select(self._features), table.select(self._keep))


class RawInputs:
    """Raw files, encoded as those were that the run was trained on.

    Raises:
        UserError: a file is missing or unreadable, lacks a column, or two files have one name.
    """

    num_rows = None

    def __init__(self, files: Sequence[Path], encoder: RawEncoder, keep: Sequence[str]) -> None:
        self._files, self._encoder, self._keep = list(files), encoder, list(keep)
        self.names = [f"{_stem(file)}.parquet" for file in files]
        if doubled := [name for name in self.names if self.names.count(name) > 1]:
            raise UserError(f"--data: two files would become {doubled[0]!r}; give them apart")
        for file in files:
            found = raw_columns(file, encoder.encoder.raw_format)
            _require_kept([*encoder.inputs, *self._keep], found, str(file))

    def rows(self, file: int) -> Iterator[Rows]:
        path, first = self._files[file], 1  # as prepare counts the rows of files
        wanted = list(dict.fromkeys([*self._encoder.inputs, *self._keep]))
        for table in raw_tables(path, self._encoder.encoder.raw_format, wanted, BLOCK_ROWS):
            try:
                columns = self._encoder.encode(table, first)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            yield Rows(columns, table.select(self._keep))
            first += table.num_rows


def prepared_split(sources: Sequence[str], split: str) -> tuple[Path, str] | None:
    """Data folder and split, where one source is a prepared folder or a split of one."""
    folder = Path(sources[0]).expanduser()
    if len(sources) > 1 or not folder.is_dir():
        return None
    if (folder / SCHEMA_FILE).is_file():
        return folder, split
    if folder.name in SPLITS and (folder.parent / SCHEMA_FILE).is_file():
        return folder.parent, folder.name
    raise UserError(
        f"--data: {str(folder)!r} is no prepared folder ({SCHEMA_FILE} is missing) and no split of "
        "one; give such a folder, or raw files"
    )


def _require_kept(names: Sequence[str], found: Sequence[str], where: str) -> None:
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{where}: column {missing[0]!r} is missing; it has {', '.join(found)}")


def _stem(file: Path) -> str:
    """The name without the endings of its format and compression."""
    stem = file.name
    for ending in (".gz", ".zst", ".csv", ".tsv", ".txt", ".parquet"):
        stem = stem.removesuffix(ending)
    return stem or file.name
