"""Columns that folders of raw files hold in their names: ``date=2022-04-08/part-0.parquet``."""

import re
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path
from urllib.parse import unquote

from stem_torchrec.errors import UserError
from stem_torchrec.prepare.engine.canonical_values import canonical
from stem_torchrec.prepare.engine.sql import literal

_MISSING = "__HIVE_DEFAULT_PARTITION__"


def partition_types(paths: Sequence[Path], columns: Collection[str]) -> dict[str, str]:
    """DuckDB types of the partition columns: BIGINT, DATE or VARCHAR, whichever fits every folder.

    Args:
        columns: those in the files, which hold before the names of folders.

    Raises:
        UserError: a key is in the folders of some files only.
    """
    found = [_keys(path) for path in paths]
    types = {}
    for key in dict.fromkeys(key for keys in found for key in keys):
        if key.lower() in {name.lower() for name in columns}:
            continue
        for path, keys in zip(paths, found, strict=True):
            if key not in keys:
                raise UserError(f"{path}: no folder {key}=..., which other files have")
        types[key] = _narrowest([keys[key] for keys in found if keys[key] != _MISSING])
    return types


def partition_sql(key: str, path: str) -> str:
    """SQL of a partition column's text, by SQL of a file's path; null where it is missing."""
    pattern = literal(f"^(?:.*/)?{re.escape(key)}=([^/]*)/")
    return f"nullif(url_decode(regexp_extract({path}, {pattern}, 1)), {literal(_MISSING)})"


def _keys(path: Path) -> dict[str, str]:
    parts = [part.partition("=") for part in path.parent.parts]
    return {key: unquote(value) for key, sign, value in parts if sign and key}


def _narrowest(values: Sequence[str]) -> str:
    if values and all(isinstance(canonical(value), int) for value in values):
        return "BIGINT"
    return "DATE" if values and all(map(_is_date, values)) else "VARCHAR"


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
