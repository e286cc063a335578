"""Settings of a model or a rule: frozen dataclasses whose bounds stand in their annotations.

    @dataclass(frozen=True)
    class MyOptions(Options):
        strength: Annotated[float, Gt(0), Doc("pull towards the mean")] = 1.0

The bounds are those of ``annotated_types``; ``Doc`` describes a setting where a run's keys are
listed. Whoever makes such an object, in a script or from a config, is told what is not allowed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

MAX_FACTOR = 1e6
"""Bound of weights and factors; float32 has room for their products."""


@dataclass(frozen=True)
class Options:
    """Base of all options; by itself, the options of what has none. Lists become tuples.

    Raises:
        ValueError: ``FIELD: value; allowed: ...`` for a value of another type or out of bounds.

    >>> @dataclass(frozen=True)
    ... class MyOptions(Options):
    ...     strength: Annotated[float, Gt(0)] = 1.0
    >>> MyOptions(strength=0.0)
    Traceback (most recent call last):
    ValueError: strength: 0.0; allowed: a finite number, above 0
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            if not _fits(hints[field.name], value):
                raise ValueError(f"{field.name}: {value!r}; allowed: {_words(hints[field.name])}")


def _fits(annotation: Any, value: Any) -> bool:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [_BOUNDS[type(part)](part) for part in parts[1:] if type(part) in _BOUNDS]
        return _fits(parts[0], value) and (value is None or all(b.holds(value) for b in bounds))
    if origin in (Union, UnionType):
        return any(_fits(part, value) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(parts[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(parts[0], key) and _fits(parts[1], item) for key, item in value.items()
        )
    if annotation is Any:
        return True
    if annotation in (int, float):
        number = isinstance(value, (int, float) if annotation is float else int)
        return number and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, annotation)


class _Bound(NamedTuple):
    holds: Callable[[Any], bool]
    words: str


_BOUNDS: dict[type, Callable[[Any], _Bound]] = {
    Gt: lambda b: _Bound(lambda value: value > b.gt, f"above {b.gt}"),
    Ge: lambda b: _Bound(lambda value: value >= b.ge, f"at least {b.ge}"),
    Lt: lambda b: _Bound(lambda value: value < b.lt, f"below {b.lt}"),
    Le: lambda b: _Bound(lambda value: value <= b.le, f"at most {b.le}"),
    MinLen: lambda b: _Bound(
        lambda value: len(value) >= b.min_length, f"at least {b.min_length} of them"
    ),
    MaxLen: lambda b: _Bound(
        lambda value: len(value) <= b.max_length, f"at most {b.max_length} of them"
    ),
}
_NAMES = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}


def _words(annotation: Any) -> str:
    """What is allowed, as a person says it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [_BOUNDS[type(part)](part).words for part in parts[1:] if type(part) in _BOUNDS]
        return ", ".join([_words(parts[0]), *bounds])
    if origin in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return ", ".join(map(str, parts))
    if origin is tuple:
        return f"a list, each {_words(parts[0])}"
    if origin is not None:
        return "a mapping"
    if annotation in (None, NoneType):
        return "None"
    return _NAMES.get(annotation, annotation.__name__)
