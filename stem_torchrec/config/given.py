"""A config from Python values: a file, a mapping or a config, and overrides."""

from collections.abc import Iterator, Mapping
from typing import Any

from stem_torchrec.config.config import Config
from stem_torchrec.config.reading import read_yaml, validate
from stem_torchrec.errors import UserError, shown
from stem_torchrec.storage.place import Place, place_of

Source = str | Place | Mapping[str, Any] | Config
"""A YAML file or its URL, sections with their keys, or a config."""


def given_config(source: Source, overrides: Mapping[str, Any]) -> Config:
    """The config that ``source`` gives, with other values for some keys.

    Args:
        overrides: keys by section, ``{"train": {"epochs": 2}}``, or by dotted name,
            ``{"train.epochs": 2}``; of a key that is given twice the last value counts.

    Raises:
        UserError: a file is missing or not YAML, or a key or value is not allowed; one line per
            mistake.
    """
    content: dict[str, Any] = {}
    for name, value in [*_pairs(_content(source)), *_pairs(overrides)]:
        section, _, key = name.partition(".")
        if not key:
            content[section] = value
            continue
        part = content.get(section)
        if part is None:  # not there, or empty in the file
            part = content[section] = {}
        if not isinstance(part, dict):
            raise UserError(f"{section}: expected keys, found {shown(part)}")
        part[key] = value
    return validate(content)


def _content(source: Source) -> Mapping[str, Any]:
    if isinstance(source, Config):
        return source.model_dump(exclude_unset=True, exclude={"versions"})
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | Place):
        raise UserError(f"config: expected a file, a mapping or a Config, found {shown(source)}")
    content = read_yaml(place_of(source), "config", "data")
    content.pop("versions", None)  # what wrote the file, not what runs it
    return content


def _pairs(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``section.key`` and its value; of what is no section of keys, the name and what is there."""
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"config: expected a name such as 'data', found {shown(name)}")
        if "." in name or not isinstance(value, Mapping):
            yield name, value
            continue
        yield from ((f"{name}.{key}", keys) for key, keys in value.items())
