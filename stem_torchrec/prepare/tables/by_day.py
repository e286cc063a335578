"""A prepared folder by days: ids that go on, a folder per day, and what the next day needs."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from stem_torchrec.data.dense_scale import STATS_FILE
from stem_torchrec.data.schema import SCHEMA_FILE, SPLITS, Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE
from stem_torchrec.prepare.engine.growing_vocabulary import grow_vocabulary, write_rare
from stem_torchrec.prepare.engine.vocabulary import copy_to, write_vocabulary
from stem_torchrec.prepare.tables.describe import DescribedFeature, Description
from stem_torchrec.prepare.tables.earlier_days import (
    DAYS_FILE,
    RARE_FOLDER,
    DaysSoFar,
    EarlierDays,
    file_digest,
)
from stem_torchrec.prepare.tables.encoding import (
    counted_values,
    encoded_rows,
    integer_columns,
    table_owners,
)
from stem_torchrec.prepare.tables.placing import SPLIT_COLUMN, order_sql
from stem_torchrec.prepare.tables.split_columns import DAY_COLUMN

_WRITTEN_ANEW = (SCHEMA_FILE, STATS_FILE, ENCODER_FILE, DAYS_FILE, VOCABULARY_FOLDER, RARE_FOLDER)


def number_values(
    connection: duckdb.DuckDBPyConnection,
    description: Description,
    owner: DescribedFeature,
    folder: Path,
    earlier: EarlierDays | None,
    *,
    frozen: bool,
) -> int:
    """Count a table's values, give those that are frequent now the next ids, and write both; the
    table's rows."""
    rows = grow_vocabulary(
        connection,
        owner.name,
        counted_values(description, owner, f"WHERE {SPLIT_COLUMN} = 0", by=f"{DAY_COLUMN} AS day"),
        min_count=description.min_count,
        before=earlier.counted(owner.name) if earlier else None,
        frozen=frozen,
    )
    write_vocabulary(connection, owner.name, folder / VOCABULARY_FOLDER)
    write_rare(connection, owner.name, folder / RARE_FOLDER)
    return rows


def write_days(
    connection: duckdb.DuckDBPyConnection,
    description: Description,
    schema: Schema,
    split: str,
    days: list[str],
    folder: Path,
    *,
    row_group_rows: int,
    finished: Callable[[pa.Table], pa.Table],
) -> None:
    """Write ``date=YYYY-MM-DD/part-00000.parquet`` of each day into the split's folder."""
    rows = encoded_rows(connection, description, schema, SPLITS.index(split))
    ordered = description.ordered and split == "train"
    for day in days:
        there = folder / split / f"date={day}"
        there.mkdir(exist_ok=True)
        copy_to(
            connection,
            f"{rows} AND placed.{DAY_COLUMN} = DATE '{day}' {order_sql(ordered=ordered)}",
            there / "part-00000.parquet",
            row_group_rows=row_group_rows,
            finished=finished,
        )


def days_so_far(
    connection: duckdb.DuckDBPyConnection,
    description: Description,
    folder: Path,
    earlier: EarlierDays | None,
    *,
    days: Mapping[str, list[str]],
    types: Mapping[str, str],
    forms: Mapping[str, int],
    raw_rows: int,
    skipped: Mapping[str, int],
) -> DaysSoFar:
    """What the days so far and the new ones leave to the next one."""
    owners = table_owners(description)
    integers = integer_columns(connection)
    before = earlier.so_far if earlier else None
    reasons = [*skipped, *(before.skipped if before else ())]
    return DaysSoFar.model_validate(
        {
            "format": 1,
            "description": description,
            "days": {
                split: [*(before.days.get(split, ()) if before else ()), *days[split]]
                for split in SPLITS
            },
            "types": {**types, **(before.types if before else {})},
            "forms": forms,
            "text_tables": [
                feature.name
                for feature in description.features
                if description.tells_apart(feature) and feature.name not in integers
            ],
            "rare": {
                owner.name: file_digest(folder / RARE_FOLDER / f"{owner.name}.parquet")
                for owner in owners
                if owner.encoding == "vocabulary"
            },
            "counts": {
                feature.name: file_digest(folder / VOCABULARY_FOLDER / f"{feature.name}.parquet")
                for feature in description.features
                if feature.transform == "count"
            },
            "raw_rows": raw_rows + (before.raw_rows if before else 0),
            "skipped": {
                reason: skipped.get(reason, 0) + (before.skipped.get(reason, 0) if before else 0)
                for reason in reasons
            },
        }
    )


def carry_days(earlier: Path, folder: Path) -> int:
    """Take over the files of the days before, which nobody writes to again; how many there are.

    They are links where the disk has such: a day costs what a day holds.
    """
    files = [
        file
        for file in sorted(earlier.rglob("*"))
        if file.is_file() and file.relative_to(earlier).parts[0] not in _WRITTEN_ANEW
    ]
    for file in files:
        target = folder / file.relative_to(earlier)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _take_over(file, target)
    return len(files)


def _take_over(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        aside = target.with_name(f".{target.name}.partial")
        shutil.copy2(file, aside)
        aside.rename(target)
