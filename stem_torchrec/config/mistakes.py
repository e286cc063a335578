"""What a person is told of values that a model does not take."""

import re
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from stem_torchrec.config.hints import unknown_key
from stem_torchrec.config.keys import Key, all_keys
from stem_torchrec.config.options import PLAIN_WORDS, KindSection
from stem_torchrec.errors import did_you_mean, shown
from stem_torchrec.storage.place import WRONG_PLACE


def described(model: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors on a model, in words with the key."""
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


def follows(error: Any) -> bool:
    """Whether a list is called too short for no reason but its wrong members, told already."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _key_of(location: str, keys: Sequence[Key]) -> str:
    """What a person calls a location: it goes on into lists and alternatives, whose start is the
    key, but in a mapping the names are a person's own."""
    for key in keys:
        if location == key.name or location.startswith(f"{key.name}."):
            return location if key.allowed.startswith("mapping") else key.name
    return location


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


def _is_one_of_several(model: type[BaseModel], location: Sequence[str | int]) -> bool:
    """Whether a key belongs to a section in a list, or to one of several by name."""
    field = model.model_fields.get(str(location[0])) if location else None
    by_name = field is not None and get_origin(field.annotation) is dict and len(location) > 2
    in_list = any(isinstance(part, int) for part in location)
    return (by_name or in_list) and isinstance(location[-1], str)
