"""Which row groups a split consists of, and whether their columns fit the schema."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from stem_torchrec.config.days import Days
from stem_torchrec.data.days import select_days
from stem_torchrec.data.footers import Footer, read_footers
from stem_torchrec.data.parquet_file import footer_digest, open_parquet_file, unreadable
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place, relative


@dataclass(frozen=True)
class RowGroup:
    """One non-empty row group: the unit in which a split is read.

    Attributes:
        num_rows: as stored.
        num_kept: rows that down-sampling leaves; None if nothing is left out.
    """

    file: Place
    index: int
    num_rows: int
    num_kept: int | None = None

    @property
    def size(self) -> int:
        """Rows that an epoch visits."""
        return self.num_rows if self.num_kept is None else self.num_kept

    def __str__(self) -> str:
        return f"{self.file}, row group {self.index}"


@dataclass(frozen=True)
class Manifest:
    """The row groups of a split in file order: files by name, groups by position.

    Attributes:
        files: a checksum of the files' names below the data folder, sizes and footers.
    """

    row_groups: tuple[RowGroup, ...]
    files: str

    @property
    def num_rows(self) -> int:
        """Rows that an epoch visits."""
        return sum(group.size for group in self.row_groups)


class ColumnUse(NamedTuple):
    """A column and what the schema takes it for."""

    column: str
    role: str
    feature: Feature | None = None


def column_uses(schema: Schema) -> list[ColumnUse]:
    """The columns that a schema reads; one column may serve several uses."""
    uses = [ColumnUse(feature.name, feature.kind, feature) for feature in schema.features]
    uses += [ColumnUse(task.label_column, "label") for task in schema.tasks]
    if schema.sample_weight is not None:
        uses.append(ColumnUse(schema.sample_weight, "sample_weight"))
    if schema.group is not None:
        uses.append(ColumnUse(schema.group, "group"))
    return uses


def check_split(path: Place, split: str, schema: Schema, days: Days | None = None) -> Manifest:
    """List the row groups of ``path/split/*.parquet`` and check their footers.

    Folders named ``KEY=VALUE`` within are partitions of the split, to any depth. Reads footers
    only, a few at a time (see ``read_footers``); not collective. Names that start with a dot are
    other programs' temporary files and are passed over.

    Args:
        days: only the files of these days; all files if None.

    Raises:
        UserError: the folder, a file or a column is missing or unreadable, a column has a type
            that its use does not allow, the statistics of an id or bag column show ids outside
            ``[0, num_embeddings)``, or the split has no rows; or as ``select_days`` does.
    """
    folder = path / split
    files = split_files(path, split)
    if days is not None:
        files = select_days(files, folder, days)
    uses = column_uses(schema)
    footers = read_footers(files, partial(_check_file, uses), repr(uses))
    groups = [
        RowGroup(file, index, num_rows)
        for file, footer in zip(files, footers, strict=True)
        for index, num_rows in enumerate(footer.rows)
        if num_rows
    ]
    if not groups:
        raise UserError(f"data.path: the files of {str(folder)!r} have no rows")
    names = [relative(file, path).as_posix() for file in files]
    digests = [footer.digest for footer in footers]
    summary = json.dumps(list(zip(names, digests, strict=True)))
    return Manifest(tuple(groups), hashlib.sha256(summary.encode()).hexdigest()[:32])


def split_files(path: Place, split: str) -> list[Place]:
    """The files of a split by name, at least one; see ``check_split``."""
    folder = path / split
    if not folder.is_dir():
        raise UserError(f"data.path: {str(folder)!r} is not a folder; split {split!r} is missing")
    files = sorted(_files(folder), key=lambda file: file.parts)
    if not files:
        raise UserError(f"data.path: {str(folder)!r} has no *.parquet file")
    return files


def _files(folder: Place) -> Iterator[Place]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.suffix == ".parquet":
            yield entry
        elif "=" in entry.name and entry.is_dir():
            yield from _files(entry)


def _check_file(uses: list[ColumnUse], file: Place) -> Footer:
    """What the file's footer tells, if it passes all checks."""
    try:
        with open_parquet_file(file) as opened:
            footer, arrow_schema = opened.metadata, opened.schema_arrow
        digest = footer_digest(file, footer.serialized_size)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from None
    for use in uses:
        check_type(file, arrow_schema, use)
    _check_statistics(file, footer, [use.feature for use in uses if use.feature is not None])
    rows = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    return Footer(rows, digest)


def check_type(file: Place, arrow_schema: pa.Schema, use: ColumnUse) -> None:
    """Refuse a file without the column, or with a type that its use does not allow.

    Raises:
        UserError: as said.
    """
    indices = arrow_schema.get_all_field_indices(use.column)
    if not indices:
        found = ", ".join(arrow_schema.names)
        raise UserError(f"{file}: {use.role} column {use.column!r} is missing; it has {found}")
    if len(indices) > 1:
        raise UserError(f"{file}: {use.role} column {use.column!r} occurs {len(indices)} times")
    found_type = arrow_schema.field(indices[0]).type
    is_allowed, allowed = _ALLOWED[use.role]
    if not is_allowed(found_type):
        raise UserError(
            f"{file}: {use.role} column {use.column!r} has type {found_type}; allowed: {allowed}"
        )


def _check_statistics(file: Place, footer: pq.FileMetaData, features: list[Feature]) -> None:
    leaves = {
        footer.schema.column(leaf).path.split(".", 1)[0]: leaf for leaf in range(footer.num_columns)
    }
    sparse = [(f, leaves[f.name]) for f in features if f.num_embeddings is not None]
    for index in range(footer.num_row_groups):
        group = footer.row_group(index)
        for feature, leaf in sparse:
            statistics = group.column(leaf).statistics
            if statistics is not None and statistics.has_min_max:
                where = str(RowGroup(file, index, group.num_rows))
                check_ids(feature, statistics.min, statistics.max, where)


def check_ids(feature: Feature, lowest: int, highest: int, where: str) -> None:
    """Refuse ids outside the feature's table.

    Raises:
        UserError: ``lowest`` or ``highest`` is outside ``[0, num_embeddings)``.
    """
    assert feature.num_embeddings is not None
    for value in (lowest, highest):
        if not 0 <= value < feature.num_embeddings:
            raise UserError(
                f"{where}: feature {feature.name!r} has id {value}; "
                f"allowed: 0 to {feature.num_embeddings - 1}"
            )


def _is_integer_list(found: pa.DataType) -> bool:
    is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return is_list and types.is_integer(found.value_type)


def _is_number(found: pa.DataType) -> bool:
    return types.is_integer(found) or types.is_floating(found)


def _is_label(found: pa.DataType) -> bool:
    return types.is_boolean(found) or _is_number(found)


_ALLOWED: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "id": (types.is_integer, "any integer"),
    "bag": (_is_integer_list, "list, large_list or fixed_size_list of any integer"),
    "dense": (_is_number, "any float or integer"),
    "label": (_is_label, "bool, any integer or float"),
    "sample_weight": (_is_number, "any float or integer"),
    "group": (types.is_integer, "any integer"),
}


def column_names(schema: Schema) -> list[str]:
    """Names of the columns to read, each once."""
    return list(dict.fromkeys(use.column for use in column_uses(schema)))
