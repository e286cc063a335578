"""Sections that are unions over named kinds."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from annotated_types import Ge
from pydantic import Field, SerializeAsAny, ValidationError
from typing_extensions import Doc

from stem_torchrec.config.options import KindSection, naming
from stem_torchrec.config.section import Section
from stem_torchrec.errors import UserError
from stem_torchrec.nn.options import Options


@dataclass(frozen=True)
class Small(Options):
    width: Annotated[int, Ge(1), Doc("how wide")] = 8
    depth: Annotated[int, Ge(1), Doc("how deep")] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < self.depth:
            raise ValueError("narrower than deep")
        if self.width == 13:
            raise ValueError("width: 13; allowed: numbers that bring luck")


@dataclass(frozen=True)
class Large(Options):
    width: Annotated[int, Ge(100), Doc("how wide")] = 100
    heads: Annotated[int, Doc("how many heads")] = 1


@dataclass(frozen=True)
class Taken(Options):
    common: int = 1


KINDS: dict[str, type] = {"small": Small, "large": Large, "nothing": Options}


class Shape(KindSection):
    kind_key = "name"
    name: str = Field("small", description="which shape")
    common: int = Field(1, ge=1, description="in all of them")

    @classmethod
    def kinds(cls) -> Mapping[str, type[Any]]:
        return KINDS

    @classmethod
    def options_type_of(cls, name: str) -> type[Any]:
        if name not in KINDS | {"taken": Taken}:
            raise ValueError(f"{name!r}; allowed: {', '.join(KINDS)}")
        return (KINDS | {"taken": Taken})[name]


class Whole(Section):
    shape: SerializeAsAny[Shape] = Field(default_factory=lambda: Shape.model_validate({}))


def shape(**keys: Any) -> Shape:
    return Whole.model_validate({"shape": keys}).shape


def errors(**keys: Any) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ValidationError) as raised:
        shape(**keys)
    return [(error["loc"], error["msg"]) for error in raised.value.errors()]


def test_options_of_the_named_kind():
    assert shape().options == Small()
    assert shape(name="large", heads=4).options == Large(heads=4)
    assert shape(name="nothing").options == Options()


def test_own_bounds_and_defaults_and_those_of_others_where_they_agree():
    assert errors(name="large", width=8) == [
        (("shape", "width"), "Input should be greater than or equal to 100")
    ]
    assert shape(name="large").width == 100
    assert shape(name="nothing").width == 8
    assert shape(name="nothing", width=-1).without_effect() == ["width"]
    assert errors(name="nothing", depth=0)[0][0] == ("shape", "depth")
    assert errors(name="nothing", width="x")[0][0] == ("shape", "width")


def test_keys_without_effect():
    assert shape(name="large", depth=3, common=2, heads=2).without_effect() == ["depth"]
    assert shape(name="large", depth=2).without_effect() == []


def test_words_of_the_options_get_the_key():
    assert errors(width=1) == [(("shape",), "narrower than deep")]
    assert errors(width=13) == [(("shape", "width"), "13; allowed: numbers that bring luck")]


def test_unknown_kind_and_unknown_key():
    assert errors(name="huge") == [
        (("shape", "name"), "'huge'; allowed: small, large, nothing"),
    ]
    assert errors(colour=1)[0][0] == ("shape", "colour")
    assert errors(name="taken") == [
        (("shape", "name"), "option common has the name of a key that all kinds have")
    ]


def test_dumps_flat_and_goes_through_pickle():
    whole = Whole.model_validate({"shape": {"name": "large", "heads": 2}})
    keys = {"name": "large", "common": 1, "width": 100, "depth": 2, "heads": 2}
    assert whole.model_dump() == {"shape": keys}
    assert Whole.model_validate(whole.model_dump()) == whole
    again = pickle.loads(pickle.dumps(whole))
    assert again == whole
    assert again.shape.options == Large(heads=2)


def test_a_copy_is_validated():
    copied = shape(name="large").model_copy(update={"name": "small", "width": 4})
    assert copied.options == Small(width=4)
    with pytest.raises(ValidationError):
        copied.model_copy(update={"width": 1})


def test_help_says_whose_a_key_is_unless_all_have_it():
    fields = Shape.with_keys_of(None).model_fields
    assert fields["width"].description == "small, large: how wide"
    assert fields["depth"].description == "small: how deep"
    assert fields["common"].description == "in all of them"
    assert fields["name"].description.startswith("which shape: small, large, nothing, or ")


def test_naming_puts_the_section_before_a_plain_error():
    with pytest.raises(UserError, match=r"^shape\.width: 3; allowed: 4$"), naming("shape"):
        raise ValueError("width: 3; allowed: 4")
