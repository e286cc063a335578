"""The model by name, with the options that it owns beside its code."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from stem_torchrec.config.import_path import FORM, import_class, is_import_path
from stem_torchrec.config.options import KindSection
from stem_torchrec.errors import UserError

if TYPE_CHECKING:
    from stem_torchrec.nn import Inputs, Model


class ModelConfig(KindSection):
    """``name`` and the options of the model that it names; see ``KindSection``."""

    kind_key: ClassVar[str] = "name"

    name: str = Field("stem_net", description="model to train")

    @classmethod
    def kinds(cls) -> Mapping[str, type[Any]]:
        from stem_torchrec.nn import MODELS

        return {name: model.options_type for name, model in MODELS.items()}

    @classmethod
    def options_type_of(cls, name: str) -> type[Any]:
        return model_class(name).options_type


def model_class(name: str) -> "type[Model]":
    """The model of a name or import path.

    Raises:
        ValueError: there is none, or it cannot be imported; in plain words.
    """
    from stem_torchrec.nn import MODELS, Model

    if name in MODELS:
        return MODELS[name]
    if not is_import_path(name):
        raise ValueError(f"{name!r}; allowed: {', '.join(MODELS)}, or one's own as {FORM}")
    found = import_class(name, Model)  # type: ignore[type-abstract]
    if not is_dataclass(found.options_type):
        raise ValueError(f"{name!r}: its options_type is no dataclass")
    return found


def build_model(config: ModelConfig, inputs: "Inputs") -> "Model":
    """The model that the config names, with its options.

    Raises:
        UserError: the options do not fit the inputs; names the key.
    """
    make: Any = model_class(config.name)
    try:
        return make(inputs, config.options)
    except ValueError as error:
        key = str(error).partition(": ")[0]
        if key in type(config).model_fields:
            raise UserError(f"model.{error} (model.name {config.name})") from error
        raise UserError(f"model.name: {config.name!r} {error}") from error
