"""Raw files and their description -> prepared folder, out of core: all adapters of one table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
from pydantic import Field

from stem_torchrec.data.describe import Description
from stem_torchrec.data.encoding import (
    count_collisions,
    count_values,
    encode_bags,
    encoded_rows,
    prepared_schema,
    table_owners,
    table_rows,
)
from stem_torchrec.data.expressions import text_columns
from stem_torchrec.data.placing import order_sql, place_rows
from stem_torchrec.data.prepared import (
    ROW_GROUP_ROWS,
    VOCABULARY_FOLDER,
    prepared_folder,
    write_metadata,
)
from stem_torchrec.data.raw_files import RawFiles, estimated_rows, open_raw_files
from stem_torchrec.data.raw_headers import find_files
from stem_torchrec.data.raw_rows import read_rows
from stem_torchrec.data.row_columns import Column, row_columns
from stem_torchrec.data.stages import Stages, Unseen
from stem_torchrec.data.vocabulary import copy_to, write_vocabulary
from stem_torchrec.data.working_database import Resources, working_database
from stem_torchrec.schema import SPLITS, Schema

# Of one value on disk at the worst moment: in the working file, sorted, written.
_BYTES_PER_VALUE = 8 + 8 + 4


class PrepareOptions(Resources):
    """How raw files are prepared, whatever they hold."""

    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="at a raw row that does not fit: stop, or count it and go on"
    )
    shuffle_seed: int = Field(0, ge=0, description="seed of the order of the train files")
    row_group_rows: int = Field(ROW_GROUP_ROWS, ge=1, description="rows per row group")


class PublicSetOptions(PrepareOptions):
    """How a public set of known columns is prepared."""

    seed: int = Field(0, ge=0, description="seed of the split")
    min_count: int = Field(10, ge=1, description="rows of train a value needs for an id of its own")


def prepare_files(
    sources: Sequence[str | Path],
    description: Description,
    out: Path,
    *,
    options: PrepareOptions | None = None,
    overwrite: bool = False,
    stages: Stages | None = None,
) -> dict[str, Any]:
    """Prepare raw files as described.

    Vocabularies are counted in train only. The rows of train are shuffled over all files, or
    ordered by time (``Description.shuffle``), others keep the order of the files. The same
    sources, description and seeds give the same rows in the same order on any number of threads.
    Work starts anew after an interruption; nothing of it is left under ``out``.

    Args:
        sources: files or patterns, read in this order.
        stages: who is told what goes on.

    Returns:
        The statistics (see ``compute_stats``), with ``raw_rows``, ``skipped`` (bad rows by reason)
        and ``hash`` (values, ids and collisions of each hashed table).

    Raises:
        UserError: files, columns, values or expressions are wrong, ``out`` is occupied, the disk
            is full.
    """
    options, stages = options or PrepareOptions(), stages or Unseen()
    find_files(sources)  # before a folder is made
    with prepared_folder(out, overwrite=overwrite) as folder:
        with working_database(folder, options) as database:
            raw = open_raw_files(
                database.connection,
                sources,
                description.format,
                text_columns=text_columns(description),
                skip_bad_rows=options.on_bad_row == "skip",
            )
            columns = row_columns(database.connection, raw, description)
            database.needed_bytes = estimated_rows(raw) * len(columns) * _BYTES_PER_VALUE
            work = _Work(database.connection, description, options, stages, columns)
            extra = work.read(raw)
            schema = work.encode(folder)
            extra |= work.raw_counts()
            work.write(folder, schema)
        with stages.stage("count labels", lambda: -1):
            return write_metadata(folder, schema, user_column=None, item_column=None, extra=extra)


class _Work:
    """The steps between raw files and written splits, on one connection."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        description: Description,
        options: PrepareOptions,
        stages: Stages,
        columns: dict[str, Column],
    ) -> None:
        self._connection = connection
        self._description = description
        self._options = options
        self._stages = stages
        self._columns = columns
        self._rows: dict[str, int] = {}

    def read(self, raw: RawFiles) -> dict[str, Any]:
        """Raw files -> the view ``placed``; statistics of what was read."""
        with self._stage(f"read {len(raw.paths)} files, {raw.num_bytes / 1e9:.2f} GB"):
            skipped = read_rows(self._connection, raw, self._columns)
        with self._stage("split"):
            self._rows = place_rows(
                self._connection, self._description, self._columns, self._options.shuffle_seed
            )
        raw_rows = sum(self._rows.values()) + sum(skipped.values())
        return {"raw_rows": raw_rows, "skipped": skipped}

    def encode(self, folder: Path) -> Schema:
        """Count and write the vocabularies."""
        rows = {}
        for owner in table_owners(self._description):
            with self._stage(f"ids of {owner.name}"):
                rows[owner.name] = table_rows(self._connection, self._description, owner)
                if owner.encoding == "vocabulary":
                    write_vocabulary(self._connection, owner.name, folder / VOCABULARY_FOLDER)
        for feature in self._description.features:
            vocabulary = self._description.owner(feature).encoding == "vocabulary"
            if feature.kind == "bag" and vocabulary:
                with self._stage(f"bags of {feature.name}"):
                    encode_bags(self._connection, self._description, feature)
        return prepared_schema(self._description, rows)

    def raw_counts(self) -> dict[str, Any]:
        """Users, items and collisions among the raw values, which the written ids merge."""
        description, counts = self._description, {}
        for key, name in (("users", description.user), ("items", description.item)):
            if name is not None:
                feature = description.feature(name)
                with self._stage(f"count {key}"):
                    counts[key] = count_values(self._connection, feature)
        hashed = [o for o in table_owners(description) if o.encoding == "hash"]
        collisions: dict[str, Mapping[str, int]] = {}
        for owner in hashed:
            with self._stage(f"collisions of {owner.name}"):
                collisions[owner.name] = count_collisions(
                    self._connection, description, owner, self._columns
                )
        return counts | ({"hash": collisions} if collisions else {})

    def write(self, folder: Path, schema: Schema) -> None:
        """Write the splits."""
        ordered = self._description.ordered
        for number, split in enumerate(SPLITS):
            query = encoded_rows(self._description, self._columns, schema, number)
            if not self._rows[split]:
                continue
            with self._stage(f"write {split}"):
                # One file: DuckDB keeps the order of several only where one thread writes them.
                copy_to(
                    self._connection,
                    f"{query} {order_sql(ordered=ordered and split == 'train')}",
                    folder / split / "part-00000.parquet",
                    row_group_rows=self._options.row_group_rows,
                )

    def _stage(self, name: str) -> Any:
        return self._stages.stage(name, self._connection.query_progress)
