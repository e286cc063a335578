"""What all models have in common that are read from files and the command line."""

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Frozen(BaseModel):
    """Frozen; unknown keys are refused, and no truth value, NaN or infinity is a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        types = _types_in(cls.model_fields[info.field_name or ""].annotation)
        if types & {int, float} and bool not in types and _holds_truth_value(value):
            raise ValueError("Input should be a number")
        return value


def _types_in(annotation: Any) -> set[Any]:
    """The types that an annotation is made of."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return set(map(type, parts))
    if origin is Annotated:
        return _types_in(parts[0])
    return set().union(*map(_types_in, parts)) if parts else {annotation}


def _holds_truth_value(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, bool) for part in parts)
