"""YAML file + ``--section.key value`` -> validated ``Config``, and the reverse."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from stem_torchrec.config import Config
from stem_torchrec.config.careful_yaml import RefusedYaml, careful_load
from stem_torchrec.config.hints import unknown_key
from stem_torchrec.config.import_path import is_import_path
from stem_torchrec.config.options import PLAIN_WORDS, KindSection
from stem_torchrec.errors import UserError, did_you_mean, shown
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.place import WRONG_PLACE, Place
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


def load_config(
    path: Place, overrides: Sequence[str] = (), *, options: Sequence[str] = ()
) -> Config:
    """Read ``path`` and apply overrides such as ``["--train.epochs", "2"]``.

    Of a key that is given twice the last value counts.

    Args:
        options: the command's own options, which a mistyped override may have meant.

    Raises:
        UserError: the file is missing or not YAML, or a key or value is not allowed.
    """
    content = read_yaml(path, "--config", "data")
    content.pop("versions", None)  # what wrote the file, not what runs it
    for name, value in parse_options(overrides, keys_for(content, overrides), options):
        section, _, key = name.partition(".")
        part = content.setdefault(section, {})
        if not isinstance(part, dict):
            raise UserError(f"{path}: {section}: expected keys, found {shown(part)}")
        part[key] = value
    return validate(content)


Model = TypeVar("Model", bound=BaseModel)


def load_options(model: type[Model], arguments: Sequence[str]) -> Model:
    """Options of a command, such as ``["--num_tasks", "3"]``, as its pydantic model.

    Raises:
        UserError: as ``load_config`` does.
    """
    return _validated(model, dict(parse_options(arguments, all_keys(model))))


def load_file(model: type[Model], path: Path, option: str) -> Model:
    """A YAML file as its pydantic model; ``option`` is how the command line names the file.

    Raises:
        UserError: as ``load_config`` does.
    """
    content = read_yaml(path, option, next(iter(model.model_fields)))
    try:
        return _validated(model, content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_yaml(path: Place, option: str, example: str) -> dict[str, Any]:
    """What a YAML file holds by name.

    Args:
        option: how the caller names the file.
        example: a name that could stand there.

    Raises:
        UserError: the file is missing, or is not YAML with names.
    """
    try:
        with usable(option, path):
            if not path.is_file():
                raise UserError(f"{option}: no file {str(path)!r}")
            content = careful_load(path.read_bytes().decode())
    except RefusedYaml as error:
        raise UserError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {_yaml_reason(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as '{example}:', found {shown(content)}")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: expected a name such as '{example}:', found {shown(key)}")
    return content


def _yaml_reason(error: Exception) -> str:
    """What is wrong and where, without the line itself: a part of a URL may show its password."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error)
    return f"{getattr(error, 'problem', None)}, line {mark.line + 1}, column {mark.column + 1}"


def parse_options(
    arguments: Sequence[str], known: Iterable[Key], options: Sequence[str] = ()
) -> Iterator[tuple[str, Any]]:
    """``--key value`` and ``--key=value`` as (key, YAML value), in their order.

    Args:
        options: other options, for a hint where one is mistyped.

    Raises:
        UserError: an unknown key, or one without a value.
    """
    keys = {key.name: key for key in known}
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise UserError(f"unexpected argument {shown(option)}; options are --key value")
        name, equals, text = option[2:].partition("=")
        name = name.replace("-", "_")
        if name not in keys:
            raise UserError(_unknown_option(name, list(keys), options))
        if not equals and rest:
            text = rest.pop(0)
        if not text.strip():
            raise UserError(f"--{name}: a value is missing; null stands for none")
        yield name, _parse_value(keys[name], text)


def keys_in_use(path: Place, overrides: Sequence[str]) -> list[Key]:
    """Every key of the package, and those of a model or rule that file or overrides import.

    Raises:
        UserError: the file cannot be read, or an import fails.
    """
    return keys_for(read_yaml(path, "--config", "data"), overrides)


def keys_for(content: Mapping[str, Any], overrides: Sequence[str] = ()) -> list[Key]:
    """As ``keys_in_use``, with what the file holds.

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


def validate(content: Mapping[str, Any]) -> Config:
    """The config, or a UserError with one line per mistake."""
    return _validated(Config, content)


def _validated(model: type[Model], content: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = {_describe(model, e): None for e in error.errors() if not _follows(e)}
        raise UserError("\n".join(lines)) from None


def dump_config(config: Config, versions: Mapping[str, str]) -> str:
    """YAML that starts the same run from any folder: every key, paths absolute."""
    content = config.model_dump(mode="json")
    content["run"]["dir"] = str(config.run.dir.absolute())
    content["data"]["path"] = str(config.data.path.absolute())
    content["versions"] = dict(versions)
    return yaml.safe_dump(content, sort_keys=False)


def by_key(config: Config) -> dict[str, Any]:
    """The values of a config by ``section.key``, as JSON has them."""
    sections = config.model_dump(mode="json", exclude={"versions"})
    return {
        f"{name}.{key}": value for name, keys in sections.items() for key, value in keys.items()
    }


def _unknown_option(name: str, keys: Sequence[str], options: Sequence[str]) -> str:
    section = name.rpartition(".")[0]
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    by_name = {option.removeprefix("--").replace("-", "_"): option for option in options}
    if "." not in name and (near := get_close_matches(name, list(by_name), n=1, cutoff=0.75)):
        return f"--{name.replace('_', '-')}: unknown option; did you mean {by_name[near[0]]}?"
    return unknown_key(name, siblings, [*keys, *options])


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


def _parse_value(key: Key, text: str) -> Any:
    try:
        value = careful_load(text)
    except RefusedYaml as error:
        raise UserError(f"--{key.name}: {error}, found {shown(text)}") from None
    except yaml.YAMLError:
        value = text
    is_list = "tuple[" in str(key.annotation)
    if is_list and isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",")]
    if is_list and isinstance(value, int | float) and not isinstance(value, bool):
        return [value]
    of_words = str(key.annotation).startswith(("tuple[str", "tuple[typing.Literal"))
    if of_words and isinstance(value, str):
        return [value]
    if "Path" in str(key.annotation):
        return text
    return value


def _keys_beside(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that the place of an unknown one may hold."""
    models = [model]
    for part in location[:-1]:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
        else:  # an index into a list, or the tag of one of several alternatives
            tagged = [m for m in models if part in _tags(m)]
            models = tagged or models
    keys = dict.fromkeys(name for m in models for name in m.model_fields)
    return [".".join([*location[:-1], name]) for name in keys]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, KindSection):
        return [annotation.with_keys_of(None)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _tags(model: type[BaseModel]) -> set[Any]:
    return {tag for field in model.model_fields.values() for tag in get_args(field.annotation)}


def _follows(error: Any) -> bool:
    """Whether a list is called too short for no reason but its wrong members, told already."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _is_one_of_several(model: type[BaseModel], location: Sequence[str | int]) -> bool:
    """Whether a key belongs to a section in a list, or to one of several by name."""
    field = model.model_fields.get(str(location[0])) if location else None
    by_name = field is not None and get_origin(field.annotation) is dict and len(location) > 2
    in_list = any(isinstance(part, int) for part in location)
    return (by_name or in_list) and isinstance(location[-1], str)


def _describe(model: type[BaseModel], error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    keys = list(all_keys(model))
    names = [key.name for key in keys]
    full = ".".join(location)
    if error["type"] == "extra_forbidden":
        return unknown_key(full, _keys_beside(model, location), names)
    if error["type"] == "missing":
        return f"{full}: required"
    key = _key_of(full, keys)
    # Of one section of several a person knows the whole location.
    if _is_one_of_several(model, error["loc"]):
        key = full
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == WRONG_PLACE:
        return f"{key}: {message}"
    if error["type"] == PLAIN_WORDS:
        return f"{full}: {message}"
    hint = ""
    if error["type"] == "literal_error":
        hint = did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
    return f"{key or 'config'}: {message}, found {shown(error['input'])}{hint}"


def _key_of(location: str, keys: Sequence[Key]) -> str:
    """What a person calls a location: it goes on into lists and alternatives, whose start is the
    key, but in a mapping the names are a person's own."""
    for key in keys:
        if location == key.name or location.startswith(f"{key.name}."):
            return location if key.allowed.startswith("mapping") else key.name
    return location
