"""Small raw files and what comes out of preparing them, for the tests of ``prepare``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stem_torchrec.config.careful_yaml import careful_load
from stem_torchrec.data.schema import SPLITS
from stem_torchrec.prepare.tables.describe import Description

Row = dict[str, Any]


def write_text(path: Path, rows: Sequence[Sequence[object]], delimiter: str = ",") -> Path:
    """Rows as lines; the first may be a header."""
    lines = [delimiter.join(map(str, row)) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def describe(text: str, **changed: Any) -> Description:
    """A description from YAML, with top-level keys replaced."""
    return Description.model_validate(careful_load(text) | changed)


def rows_of(folder: Path, split: str) -> list[Row]:
    """A split's rows in the order of its files; none where it was not written."""
    files = sorted((folder / split).glob("*.parquet"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def all_rows(folder: Path) -> dict[str, list[Row]]:
    return {split: rows_of(folder, split) for split in SPLITS}


def vocabulary(folder: Path, feature: str) -> dict[Any, int]:
    table = pq.read_table(folder / "vocab" / f"{feature}.parquet").to_pylist()
    return {row["value"]: row["id"] for row in table}


def files_under(folder: Path) -> set[str]:
    """Names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def without(row: Mapping[str, Any], *names: str) -> Row:
    return {name: value for name, value in row.items() if name not in names}
