"""Raw rows as a command names them: files, their description, and the days that they follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import duckdb

from stem_torchrec.prepare.engine.building import Request
from stem_torchrec.prepare.engine.options import PrepareOptions
from stem_torchrec.prepare.engine.request import request_of
from stem_torchrec.prepare.tables.column import Column
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.earlier_days import EarlierDays
from stem_torchrec.prepare.tables.raw.files import RawFiles, open_raw_files
from stem_torchrec.prepare.tables.raw.headers import find_files
from stem_torchrec.prepare.tables.raw.side_tables import side_files, with_side_tables
from stem_torchrec.prepare.tables.row_columns import row_columns


@dataclass(frozen=True)
class RowsToPrepare:
    """Raw rows, and how they are to be prepared.

    Attributes:
        earlier: the days to which they are added.
    """

    sources: Sequence[str | Path]
    description: Description
    options: PrepareOptions
    day: date | None = None
    earlier: EarlierDays | None = None
    frozen: bool = False

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The rows' own, and those of side tables."""
        return (*find_files(self.sources), *side_files(self.description.tables))

    @property
    def request(self) -> Request:
        request = request_of(self.files, self.options, description=self.description)
        added_to = self.earlier.state if self.earlier else None
        return request | {"day": str(self.day), "added to": added_to, "frozen": self.frozen}

    @property
    def by_day(self) -> bool:
        return self.description.split.by == "day"

    def open(self, connection: duckdb.DuckDBPyConnection) -> RawFiles:
        raw = open_raw_files(
            connection,
            self.sources,
            self.description.format,
            skip_bad_rows=self.options.on_bad_row == "skip",
            with_names=self.description.split.by == "file",
            known_types=self.earlier.so_far.types if self.earlier else None,
        )
        return with_side_tables(connection, raw, self.description.tables)

    def columns(
        self, connection: duckdb.DuckDBPyConnection, raw: RawFiles, *, of_all_rows: bool = False
    ) -> dict[str, Column]:
        columns = row_columns(
            connection,
            raw,
            self.description,
            day=self.day,
            earlier=self.earlier.so_far.values if self.earlier else None,
            of_all_rows=of_all_rows,
        )
        if self.earlier:
            read = {name for column in columns.values() for name in column.typed | column.reads}
            self.earlier.refuse_other_types({name: raw.columns[name] for name in sorted(read)})
        return columns
