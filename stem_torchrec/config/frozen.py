"""What all models have in common that are read from files and the command line."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Frozen(BaseModel):
    """Frozen; unknown keys are refused, and no truth value, NaN or infinity is a number.

    To Python ``True`` is 1, so pydantic would take it. The model looks for it, not each field: a
    field that names its model's kind may have no validator.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, content: object) -> object:
        if not isinstance(content, Mapping):
            return content
        wrong = [
            InitErrorDetails(
                type=PydanticCustomError("number", "Input should be a number"),
                loc=(name,),
                input=content[name],
            )
            for name, field in cls.model_fields.items()
            if name in content
            and _holds_truth_value(content[name])
            and _numbers_alone(field.annotation)
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return content


def _holds_truth_value(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, bool) for part in parts)


def _numbers_alone(annotation: Any) -> bool:
    types = _types_in(annotation)
    return bool(types & {int, float}) and bool not in types


def _types_in(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return set(map(type, parts))
    if origin is Annotated:
        return _types_in(parts[0])
    return set().union(*map(_types_in, parts)) if parts else {annotation}
