"""Which dimensions of a model's dense weights belong to its tasks, and which to its features.

Told by the shapes: those of the same model with one more task, or one more feature, are larger
there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from stem_torchrec.config import Config
from stem_torchrec.models import MODELS
from stem_torchrec.schema import Feature, Schema, Task

Shape = tuple[int, ...]


class Growth(NamedTuple):
    """By the weight's name in the model, how much each dimension is larger with one more of them.

    Attributes:
        tasks: with one more task.
        features: with one more feature.
    """

    tasks: Mapping[str, Shape]
    features: Mapping[str, Shape]


def growth_of(config: Config, schema: Schema) -> Growth:
    """How the config's model grows; nothing is allocated."""
    task = Task(name=_unused("one_more", schema.task_names))
    order = config.model.task_order
    if order is not None and config.model.name == "aitm":  # which needs them all
        order = (*order, task.name)
    names = [feature.name for feature in schema.features]
    feature = Feature(name=_unused("one_more", names), kind="id", num_embeddings=1)
    here = _shapes(config, schema)
    more_tasks = _shapes(
        config.model_copy(update={"model": config.model.model_copy(update={"task_order": order})}),
        schema.model_copy(update={"tasks": (*schema.tasks, task)}),
    )
    more_features = _shapes(
        config, schema.model_copy(update={"features": (*schema.features, feature)})
    )
    return Growth(_differences(here, more_tasks), _differences(here, more_features))


def _unused(name: str, names: tuple[str, ...] | list[str]) -> str:
    while name in names:
        name += "_"
    return name


def _shapes(config: Config, schema: Schema) -> dict[str, Shape]:
    with torch.device("meta"):
        model = MODELS[config.model.name](config.model, schema, config.embedding.dim)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _differences(here: Mapping[str, Shape], larger: Mapping[str, Shape]) -> dict[str, Shape]:
    return {
        name: tuple(more - size for size, more in zip(shape, larger[name], strict=True))
        for name, shape in here.items()
        if name in larger and larger[name] != shape
    }
