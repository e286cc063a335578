"""The keys that a config may have: names, types in words, defaults."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from stem_torchrec.config import Config
from stem_torchrec.config.import_path import is_import_path
from stem_torchrec.config.options import KindSection
from stem_torchrec.errors import UserError
from stem_torchrec.storage.store_path import StorePath


class Key(NamedTuple):
    """One key of the config, for ``--help`` and error messages."""

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def default_text(self) -> str:
        if self.default is None:
            return "null"
        if isinstance(self.default, tuple):
            return ",".join(map(str, self.default))
        return str(self.default)

    @property
    def allowed(self) -> str:
        """The type in words: choices where there are some."""
        return _type_words(self.annotation)


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key that a file or the command line may set, sections' as ``section.key``."""
    for name, field in section.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            if issubclass(part, KindSection):
                part = part.with_keys_of(None)
            yield from all_keys(part, f"{prefix}{name}.")
        elif prefix or section is not Config:
            default = "required" if field.default is PydanticUndefined else field.default
            default = {} if field.default_factory is not None else default
            yield Key(prefix + name, field.annotation, default, field.description or "")


def keys_for(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[Key]:
    """Every key of the package, and those of a model or rule that content or overrides import.

    Raises:
        UserError: the import fails.
    """
    keys = {key.name: key for key in all_keys()}
    for section, path in _imported_kinds(content, overrides).items():
        kinds = _kind_sections()[section]
        try:
            imported = all_keys(kinds.with_keys_of(path), f"{section}.")
        except ValueError as error:
            raise UserError(f"{section}.{kinds.kind_key}: {error}") from None
        keys |= {key.name: key for key in imported}
    return list(keys.values())


def _imported_kinds(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Section -> import path of the model or rule that file and overrides name in it."""
    found = {}
    for section, kind_section in _kind_sections().items():
        keys = content.get(section)
        name = keys.get(kind_section.kind_key) if isinstance(keys, Mapping) else None
        option = f"--{section}.{kind_section.kind_key}"
        for given, after in zip(overrides, [*overrides[1:], ""], strict=False):
            if given == option:
                name = after
            elif given.startswith(f"{option}="):
                name = given.removeprefix(f"{option}=")
        if isinstance(name, str) and is_import_path(name):
            found[section] = name
    return found


def _kind_sections() -> dict[str, type[KindSection]]:
    parts = {name: field.annotation for name, field in Config.model_fields.items()}
    return {
        name: part
        for name, part in parts.items()
        if isinstance(part, type) and issubclass(part, KindSection)
    }


def by_key(config: Config) -> dict[str, Any]:
    """The values of a config by ``section.key``, as JSON has them."""
    sections = config.model_dump(mode="json", exclude={"versions"})
    return {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }


def _type_words(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin is Annotated:
        return _type_words(parts[0])
    if origin in (Union, UnionType):
        return " | ".join("null" if part is type(None) else _type_words(part) for part in parts)
    if origin is tuple:
        return f"list of {_type_words(parts[0])}"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true | false"}
    names |= {Path: "path", StorePath: "URL"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
