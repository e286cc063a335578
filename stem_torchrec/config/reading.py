"""YAML file + ``--section.key value`` -> validated ``Config``, and the reverse."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import (
    Any,
    TypeVar,
)

import yaml
from pydantic import BaseModel, ValidationError

from stem_torchrec.config import Config
from stem_torchrec.config.careful_yaml import RefusedYaml, careful_load
from stem_torchrec.config.hints import unknown_key
from stem_torchrec.config.keys import Key, all_keys, keys_for
from stem_torchrec.config.mistakes import described, follows
from stem_torchrec.errors import UserError, shown
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.place import Place


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


def validate(content: Mapping[str, Any]) -> Config:
    """The config, or a UserError with one line per mistake."""
    return _validated(Config, content)


def _validated(model: type[Model], content: Mapping[str, Any]) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = {described(model, e): None for e in error.errors() if not follows(e)}
        raise UserError("\n".join(lines)) from None


def dump_config(config: Config, versions: Mapping[str, str]) -> str:
    """YAML that starts the same run from any folder: every key, paths absolute."""
    content = config.model_dump(mode="json")
    content["run"]["dir"] = str(config.run.dir.absolute())
    content["data"]["path"] = str(config.data.path.absolute())
    content["versions"] = dict(versions)
    return yaml.safe_dump(content, sort_keys=False)


def _unknown_option(name: str, keys: Sequence[str], options: Sequence[str]) -> str:
    section = name.rpartition(".")[0]
    siblings = [key for key in keys if key.rpartition(".")[0] == section]
    by_name = {option.removeprefix("--").replace("-", "_"): option for option in options}
    if "." not in name and (near := get_close_matches(name, list(by_name), n=1, cutoff=0.75)):
        return f"--{name.replace('_', '-')}: unknown option; did you mean {by_name[near[0]]}?"
    return unknown_key(name, siblings, [*keys, *options])


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
