"""Sections whose keys depend on what one of them names: a model, a balancing rule.

A *kind* is what can be named; it owns a frozen dataclass of options beside its code. Of a kind's
section pydantic sees these fields:

- the common keys, declared in the section's class;
- the keys of the named kind's options, with its types, bounds and defaults;
- the keys of the package's other kinds. They have no effect, and are allowed because one file may
  serve several kinds. Their bounds hold, unless the kinds that have the key disagree on them.

So a key that nobody owns is unknown, and ``without_effect`` follows from the types.

    class BalanceConfig(KindSection):
        kind_key = "rule"
        rule: str = Field("equal", description="...")

        @classmethod
        def kinds(cls): ...                 # {"equal": EqualOptions, ...}

        @classmethod
        def options_type_of(cls, name): ... # the same for any name, import paths too
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import pydantic
from pydantic import (
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Doc

from stem_torchrec.config.import_path import FORM, is_import_path
from stem_torchrec.config.section import Section
from stem_torchrec.errors import UserError, did_you_mean

PLAIN_WORDS = "plain_words"
"""Type of an error whose message says value and what is allowed by itself."""


class KindSection(Section):
    """A section in which ``kind_key`` names a kind, whose options are further keys.

    Validating keys gives an object of a subclass that is made for the kind. Make one with
    ``model_validate``, not by calling the class.

    Attributes:
        options: the options of the named kind.
    """

    kind_key: ClassVar[str]
    options_type: ClassVar[type[Any] | None] = None
    _options: Any = PrivateAttr(None)

    @classmethod
    def kinds(cls) -> Mapping[str, type[Any]]:
        """The options class of each of the package's kinds, by name, in the order of the help.

        Imports the kinds late: a command that needs no config need not wait for torch.
        """
        raise NotImplementedError

    @classmethod
    def options_type_of(cls, name: str) -> type[Any]:
        """The options class of a kind by name, an import path included.

        Raises:
            ValueError: no such kind, or it cannot be imported; in plain words.
        """
        raise NotImplementedError

    @classmethod
    def kind_names(cls) -> list[str]:
        """What the section's key may be, but for import paths."""
        return list(cls.kinds())

    @classmethod
    def with_keys_of(cls, name: str | None) -> type[Self]:
        """This section with the keys of a kind, or (None) with those of all the package's.

        Raises:
            ValueError: as ``options_type_of`` does.
        """
        kind: Any = None if name is None else cls.options_type_of(name)
        return _with_keys(cls, kind)

    @property
    def options(self) -> Any:
        return self._options

    def without_effect(self) -> list[str]:
        """Keys that are not at their defaults, but belong to other kinds alone."""
        working = {field.name for field in fields(self._options)}
        working |= _as_declared(type(self)).model_fields.keys()
        return sorted(
            key
            for key, field in type(self).model_fields.items()
            if key not in working
            and getattr(self, key) != field.get_default(call_default_factory=True)
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other keys, validated anew: another kind has other options."""
        keys = self.model_dump() | dict(update or {})
        return cast("Self", _as_declared(type(self)).model_validate(keys))

    @model_validator(mode="wrap")
    @classmethod
    def _by_kind(cls, keys: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if cls.options_type is not None or isinstance(keys, cls) or not isinstance(keys, Mapping):
            return handler(keys)
        name = keys.get(cls.kind_key, cls.model_fields[cls.kind_key].default)
        if not isinstance(name, str):
            return handler(keys)
        try:
            section = cls.with_keys_of(name)
        except ValueError as error:
            hint = "" if is_import_path(name) else did_you_mean(name, cls.kind_names())
            raise _mistake(cls, f"{error}{hint}", name, cls.kind_key) from None
        return section.model_validate(keys)

    @model_validator(mode="after")
    def _make_options(self) -> Self:
        assert self.options_type is not None
        own = {field.name: getattr(self, field.name) for field in fields(self.options_type)}
        try:
            self._options = self.options_type(**own)
        except ValueError as error:
            key, colon, _ = str(error).partition(": ")
            if not (colon and key in own):
                raise PydanticCustomError(PLAIN_WORDS, "{it}", {"it": str(error)}) from None
            text = str(error).removeprefix(f"{key}: ")
            raise _mistake(type(self), text, own[key], key) from None
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made here, so another process has to make it again.
        return _restored, (_as_declared(type(self)), self.model_dump())


@contextmanager
def naming(section: str) -> Iterator[None]:
    """Turn the ``ValueError`` of a model or rule, ``KEY: ...``, into a UserError with the section.

    Raises:
        UserError: ``section.KEY: ...``.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"{section}.{error}") from error


class _Option(NamedTuple):
    annotation: Any
    field: Field[Any]
    owners: list[str]
    agreed: bool = True

    def key(self, num_kinds: int, *, bare: bool = False) -> tuple[Any, Any]:
        """As pydantic declares it; the description names the owners unless all are."""
        is_annotated = get_origin(self.annotation) is Annotated
        kind, *extras = get_args(self.annotation) if is_annotated else (self.annotation,)
        text = next((extra.documentation for extra in extras if isinstance(extra, Doc)), "")
        if self.owners and len(self.owners) < num_kinds:
            text = f"{', '.join(self.owners)}: {text}"
        default: dict[str, Any] = {}
        if self.field.default is not MISSING:
            default = {"default": self.field.default}
        elif self.field.default_factory is not MISSING:
            default = {"default_factory": self.field.default_factory}
        return kind if bare else self.annotation, pydantic.Field(**default, description=text)


def _options_in(kind: type[Any]) -> dict[str, _Option]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: _Option(hints[field.name], field, []) for field in fields(kind)}


def _options_of_kinds(section: type[KindSection]) -> dict[str, _Option]:
    """Every key of the package's kinds, with the names of those that have it."""
    found: dict[str, _Option] = {}
    for name, kind in section.kinds().items():
        for key, option in _options_in(kind).items():
            known = found.setdefault(key, option)
            known.owners.append(name)
            if _bounds(known.annotation) != _bounds(option.annotation):
                found[key] = known._replace(agreed=False)
    return found


def _bounds(annotation: Any) -> tuple[Any, ...]:
    """Type and bounds of an option, without its description."""
    parts = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    return tuple(part for part in parts if not isinstance(part, Doc))


@cache
def _with_keys(section: type[KindSection], kind: type[Any] | None) -> type[Any]:
    of_kinds = _options_of_kinds(section)
    own = _options_in(kind) if kind is not None else of_kinds
    if taken := own.keys() & section.model_fields.keys():
        raise ValueError(f"option {min(taken)} has the name of a key that all kinds have")
    num_kinds = len(section.kinds())
    keys: dict[str, Any] = {
        key: option.key(num_kinds, bare=not option.agreed) for key, option in of_kinds.items()
    }
    for key, option in own.items():
        owners = of_kinds[key].owners if key in of_kinds else []
        keys[key] = option._replace(owners=owners).key(num_kinds)
    names = section.model_fields[section.kind_key]
    text = f"{names.description}: {', '.join(section.kind_names())}, or {FORM} of your own"
    keys[section.kind_key] = (str, pydantic.Field(names.default, description=text))
    title = section.__name__ if kind is None else f"{section.__name__}[{kind.__name__}]"
    made: Any = create_model(title, __base__=section, __module__=section.__module__, **keys)
    made.options_type = kind
    return made


def _as_declared(section: type[KindSection]) -> type[KindSection]:
    """The section's class with the common keys alone."""
    return next(kind for kind in section.__mro__ if "kind_key" in vars(kind))


def _mistake(section: type[KindSection], text: str, value: Any, key: str) -> ValidationError:
    error = PydanticCustomError(PLAIN_WORDS, "{it}", {"it": text})
    line = InitErrorDetails(type=error, loc=(key,), input=value)
    return ValidationError.from_exception_data(section.__name__, [line])


def _restored(section: type[KindSection], keys: Mapping[str, Any]) -> KindSection:
    return section.model_validate(keys)
