"""What turns raw values into a prepared folder's columns, as JSON: ``encoder.json``.

A value is SQL of DuckDB over the raw columns, the text that ``prepare`` has run. Each raw column is
there under its name, of its type, and as a text under the name that ``text_column`` gives.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from stem_torchrec.errors import UserError, shown
from stem_torchrec.prepare.encoder.transforms import Transform, transform_from

ENCODER_FILE = "encoder.json"
FORMAT = 1
"""Of the encoders that are written."""

Encoding = Literal["vocabulary", "direct", "dense", "count", "bucket"]
"""How SQL's value becomes the column's: by its place in a vocabulary, as it is, by its count in
train, or by the bucket it lies in."""


def text_column(name: str) -> str:
    """Under which name, that no header has, a raw column is there as a text."""
    return f"\x01{name}"


@dataclass(frozen=True)
class Input:
    """A raw column.

    Attributes:
        type: DuckDB's type of its values.
        wrong: SQL that is true where the text is no value of that type; None if it cannot be or
            does not matter.
        value: SQL of the value by its text; None: a cast.
    """

    name: str
    type: str
    wrong: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class EncodedFeature:
    """A feature's column.

    Attributes:
        sql: the raw value (``vocabulary``, ``count``), the id (``direct``) or the number
            (``dense``, ``bucket``); of a bag a list.
        reads: raw columns in it.
        wrong: SQL that is true where a row is refused for this feature; None if it cannot be.
        fault: SQL of a text that says what is wrong.
        table: feature whose vocabulary numbers the values, or has their counts.
        plain: raw column that is the value without any SQL, where it holds integers; and where
            it holds texts, if those are taken as they are (``plain_text``).
        num_embeddings: rows of the table of a feature with ``direct`` ids or those of buckets.
        transform: what the number, count or bucket goes through at last, as fitted on train.
    """

    name: str
    kind: Literal["id", "bag", "dense"]
    encoding: Encoding
    sql: str
    reads: tuple[str, ...]
    wrong: str | None = None
    fault: str = "''"
    table: str | None = None
    num_embeddings: int | None = None
    plain: str | None = None
    plain_text: bool = False
    transform: Transform | None = None


@dataclass(frozen=True)
class Encoder:
    """All that ``prepare`` knows about raw rows.

    Attributes:
        raw_format: how the raw files are written; ``RawFormat`` reads it.
        null_strings: texts that mean: missing.
    """

    inputs: tuple[Input, ...]
    features: tuple[EncodedFeature, ...]
    null_strings: tuple[str, ...]
    raw_format: Mapping[str, Any]

    @property
    def decimal(self) -> str:
        """What parts a number's fraction off in texts."""
        return "," if self.raw_format.get("decimal") == "," else "."

    @property
    def counted(self) -> set[str]:
        """Features whose column is the count of a value."""
        return {feature.name for feature in self.features if feature.encoding == "count"}

    def only(self, names: Sequence[str], where: str) -> "Encoder":
        """For these features, in this order.

        Raises:
            UserError: it has no such feature.
        """
        known = {feature.name: feature for feature in self.features}
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"{where}: feature {missing[0]!r} is missing; it has {', '.join(known)}"
            )
        kept = tuple(known[name] for name in names)
        reads = {column for feature in kept for column in feature.reads}
        return replace(self, features=kept, inputs=tuple(i for i in self.inputs if i.name in reads))

    def text(self) -> str:
        """As ``encoder.json`` has it."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def write_encoder(encoder: Encoder, folder: Path) -> None:
    """Write ``folder/encoder.json``, through to the disk; the old one stays until it is whole."""
    aside = folder / f".{ENCODER_FILE}"
    with aside.open("w") as file:
        file.write(encoder.text())
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / ENCODER_FILE)


def encoder_from(text: str | bytes, where: str) -> Encoder:
    """The encoder that a JSON text stands for.

    Raises:
        UserError: it stands for none, or for one of another version.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(
                f"{where}: an encoder of format {shown(content['format'])}; this version reads "
                f"{FORMAT}"
            )
        return Encoder(
            tuple(_made(Input, part) for part in content["inputs"]),
            tuple(_made(EncodedFeature, part) for part in content["features"]),
            tuple(map(str, content["null_strings"])),
            dict(content["raw_format"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{where}: is no encoder, or is damaged") from None


def _made(kind: Any, content: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, whose fields are texts, numbers and lists of texts."""
    made = kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in content.items()})
    if isinstance(made, EncodedFeature) and isinstance(made.transform, Mapping):
        made = replace(made, transform=transform_from(made.transform))
    for field in fields(kind):
        value = getattr(made, field.name)
        number = field.name in ("num_embeddings", "plain_text")
        allowed = (int, type(None)) if number else (str, tuple, Transform, type(None))
        if not isinstance(value, allowed):
            raise ValueError(field.name)
    if isinstance(made, EncodedFeature) and made.encoding not in get_args(Encoding):
        raise ValueError(made.encoding)
    return made
