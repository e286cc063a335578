"""A prepared folder that later days are added to: what it remembers of the days so far.

``days.json`` holds what the next day needs beside the raw rows, ``rare/FEATURE.parquet`` the values
of train without an id and their counts.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stem_torchrec.config.frozen import Frozen
from stem_torchrec.data.schema import SCHEMA_FILE, SPLITS, Schema, load_schema
from stem_torchrec.data.vocabulary_identity import (
    VOCABULARY_FOLDER,
    identity_of,
    vocabulary_file,
)
from stem_torchrec.errors import UserError, shown
from stem_torchrec.prepare.engine.canonical_values import INTEGER_TYPES
from stem_torchrec.prepare.engine.growing_vocabulary import CountedBefore
from stem_torchrec.prepare.tables.describe import Description
from stem_torchrec.prepare.tables.value_forms import EarlierValues
from stem_torchrec.storage.place import Place, in_store

DAYS_FILE = "days.json"
RARE_FOLDER = "rare"

_BLOCK_BYTES = 1 << 22


class DaysSoFar(Frozen):
    """The content of ``days.json``."""

    format: Literal[1]
    description: Description
    days: dict[str, tuple[date, ...]] = Field(description="of each split, in their order")
    types: dict[str, str] = Field(description="DuckDB types of the raw columns")
    forms: dict[str, int] = Field(description="see EarlierValues")
    text_tables: tuple[str, ...] = Field(description="see EarlierValues")
    rare: dict[str, str] = Field(description="SHA-256 of rare/FEATURE.parquet, by feature")
    counts: dict[str, str] = Field(
        {}, description="SHA-256 of vocab/FEATURE.parquet of transform count, by feature"
    )
    raw_rows: int
    skipped: dict[str, int]

    @property
    def values(self) -> EarlierValues:
        return EarlierValues(self.forms, frozenset(self.text_tables))

    @property
    def last(self) -> date:
        return max(day for days in self.days.values() for day in days)

    def save(self, folder: Path) -> None:
        # What the description leaves out stays out: given, it would say something else.
        text = self.model_dump_json(indent=1, exclude_unset=True)
        (folder / DAYS_FILE).write_text(text + "\n")


@dataclass(frozen=True)
class EarlierDays:
    """An opened folder, whose vocabularies are those that were written.

    Attributes:
        state: changes with every day that is added.
    """

    folder: Path
    so_far: DaysSoFar
    state: str

    def counted(self, feature: str) -> CountedBefore:
        name = f"{feature}.parquet"
        return CountedBefore(
            self.folder / VOCABULARY_FOLDER / name, self.folder / RARE_FOLDER / name
        )

    @property
    def files(self) -> list[Path]:
        """Those of the values that are counted."""
        folders = (self.folder / VOCABULARY_FOLDER, self.folder / RARE_FOLDER)
        return sorted(file for folder in folders for file in folder.glob("*.parquet"))

    def require_unchanged(self) -> None:
        """Raise UserError if another process has added days since the folder was opened."""
        if _state(self.folder) != self.state:
            raise UserError(
                f"--extend: {str(self.folder)!r} was changed by another process; try again"
            )

    def refuse_other_types(self, types: Mapping[str, str]) -> None:
        """Refuse raw columns of another type than on the days so far; integers may differ in width.

        Args:
            types: of the columns that are read.

        Raises:
            UserError: names the first.
        """
        for name, kind in types.items():
            there = self.so_far.types.get(name, kind)
            if kind != there and not {kind, there} <= {*INTEGER_TYPES}:
                raise UserError(
                    f"--source: column {name!r} is {kind}; on the days in {str(self.folder)!r} it "
                    f"was {there}"
                )

    def require_later(self, days: Mapping[str, list[str]]) -> None:
        """Refuse days that are there already, or lie before the last one.

        Raises:
            UserError: names the first.
        """
        there = {day: split for split, found in self.so_far.days.items() for day in found}
        for day in sorted(date.fromisoformat(day) for found in days.values() for day in found):
            if day in there:
                raise UserError(
                    f"--extend: {day} is in {str(self.folder)!r} already, in {there[day]}; "
                    "a day is added once, and whole"
                )
            if day < self.so_far.last:
                raise UserError(
                    f"--extend: {day} lies before {self.so_far.last}, the last day of "
                    f"{str(self.folder)!r}; days are added in their order"
                )


def open_earlier_days(folder: Place, description: Description | None) -> EarlierDays:
    """Open a folder to add days to it.

    Args:
        description: of the rows that are to be added; the folder's own if None.

    Raises:
        UserError: it was not prepared by days, or with another description, or a vocabulary or
            count is not what was written; names it.
    """
    if in_store(folder):
        raise UserError(f"--extend: {folder} lies in a store, where no folder is replaced at once")
    file = folder / DAYS_FILE
    if not file.is_file():
        raise UserError(
            f"--extend: {str(file)!r} is missing; days are added to a folder that prepare csv has "
            "written with split: {by: day}"
        )
    schema, so_far = load_schema(folder), read_days(folder)
    if description is not None:
        _refuse_other_description(so_far.description, description, folder)
        so_far = so_far.model_copy(update={"description": description})
    _refuse_changed_vocabularies(folder, schema)
    refuse_changed_counts(folder, so_far)
    return EarlierDays(folder, so_far, _state(folder))


def read_days(folder: Place) -> DaysSoFar:
    """``folder/days.json``.

    Raises:
        UserError: it is damaged.
    """
    file = folder / DAYS_FILE
    try:
        return DaysSoFar.model_validate_json(file.read_bytes())
    except ValueError as error:
        first = str(error).splitlines()[1:3]
        raise UserError(f"{file}: damaged, or of another version ({' '.join(first)})") from None


def refuse_changed_counts(folder: Place, so_far: DaysSoFar) -> None:
    """Raise UserError if the counts of values without an id, or those of transform ``count``, are
    not what was written."""
    for inside, digests in ((RARE_FOLDER, so_far.rare), (VOCABULARY_FOLDER, so_far.counts)):
        for feature, digest in digests.items():
            file = folder / inside / f"{feature}.parquet"
            if not file.is_file() or file_digest(file) != digest:
                raise UserError(f"{file}: is missing, or not what the last day has written")


def _state(folder: Path) -> str:
    return hashlib.sha256(
        (folder / DAYS_FILE).read_bytes() + (folder / SCHEMA_FILE).read_bytes()
    ).hexdigest()


def file_digest(file: Place) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _refuse_changed_vocabularies(folder: Path, schema: Schema) -> None:
    """Raise UserError if a vocabulary was edited, shortened or exchanged."""
    for feature in schema.sparse:
        if feature.encoding != "vocabulary" or feature.table_name != feature.name:
            continue
        file, written = vocabulary_file(folder, feature), feature.vocabulary
        found = identity_of(file)
        if written is not None and found.num_values < written.num_values:
            raise UserError(
                f"{file}: has shrunk to {found.num_values} values; schema.json has "
                f"{written.num_values}"
            )
        if found != written:
            raise UserError(f"{file}: its values are not those whose hash schema.json has")


def _refuse_other_description(before: Description, now: Description, folder: Path) -> None:
    """Raise UserError at the first difference. Which days are valid and test may change, as those
    of the folder stay where they are, and the files of side tables."""
    first = next(_differences("", _compared(before), _compared(now)), None)
    if first is not None:
        key, there, here = first
        # A whole part of the other description would hide what it is about.
        parts = isinstance(there, dict) or isinstance(here, dict)
        difference = (
            f"{key} is {'missing' if here is None else 'new'}, but {str(folder)!r} was prepared "
            f"with{'' if here is None else 'out'} it"
            if parts
            else f"{key} is {shown(here)}, but {str(folder)!r} was prepared with {shown(there)}"
        )
        raise UserError(
            f"--describe: {difference}; days are added with the description of the first one"
        )


def _compared(description: Description) -> dict[str, Any]:
    excluded: dict[str, Any] = {"split": set(SPLITS), "tables": {"__all__": {"source"}}}
    content = description.model_dump(mode="json", exclude=excluded)
    return content | {"features": {f["name"]: f for f in content["features"]}}


def _differences(key: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """(key, value there, value here) of what differs."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in there | here:
            part = f"{key}.{name}" if key else name
            yield from _differences(part, there.get(name), here.get(name))
    elif there != here:
        yield key, there, here
