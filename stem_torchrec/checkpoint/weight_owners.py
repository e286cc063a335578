"""Whose the dense weights of a checkpoint are: kept in its manifest, and read from there."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from stem_torchrec.config import Config, build_model
from stem_torchrec.config.reading import load_config
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.recommender import inputs_of
from stem_torchrec.nn import Inputs, Model, Ownership
from stem_torchrec.storage.place import Place

_PREFIX = "recommender.model."
_KEY = "owners"


def weight_owners(model: Model) -> dict[str, Ownership]:
    """Whose each dense weight is, by its name in a checkpoint."""
    return {
        f"{_PREFIX}{name}": of._replace(role=f"{_PREFIX}{of.role}")
        for name, of in model.ownership().items()
    }


def reading_features(config: Config, schema: Schema) -> frozenset[str]:
    """Names of the dense weights that read the features: their shapes go by how many there are."""
    inputs = inputs_of(schema, config.embedding)
    features = {**inputs.features, "one more": "context"}
    dims = {**inputs.widths, "one more": inputs.columns.widths[0]}
    more = replace(inputs, features=features, dims=dims)
    with torch.device("meta"):
        one, other = (build_model(config.model, of).state_dict() for of in (inputs, more))
    return frozenset(f"{_PREFIX}{name}" for name in one if one[name].shape != other[name].shape)


def about_owners(model: Model) -> dict[str, Any]:
    """For a manifest: the weights of which it matters whose they are."""
    return {
        _KEY: {
            name: {
                "role": of.role,
                "owner": of.owner,
                "dims": {str(dim): list(labels) for dim, labels in of.dims.items()},
            }
            for name, of in weight_owners(model).items()
            if of != Ownership(name)
        }
    }


def owners_in(about: Mapping[str, Any], run_dir: Place) -> dict[str, Ownership]:
    """What a manifest tells of a run's weights; or, as older ones do not tell, the run's config.

    Raises:
        UserError: the run's ``config.yaml`` is missing or cannot be read.
    """
    if _KEY not in about:
        return _owners_of_run(run_dir, about["tasks"])
    return {
        name: Ownership(
            of["role"],
            of["owner"],
            {int(dim): tuple(labels) for dim, labels in of["dims"].items()},
        )
        for name, of in about[_KEY].items()
    }


def _owners_of_run(run_dir: Place, tasks: Sequence[str]) -> dict[str, Ownership]:
    config = load_config(run_dir / "config.yaml", ["--run.dir", str(run_dir)]).model
    # Whose a weight is depends on tasks and options alone: any features will do.
    wanted = getattr(config.options, "task_specific_features", "all")
    features = ("a", "b") if isinstance(wanted, str) else ("a", "b", *wanted)
    inputs = Inputs(dict.fromkeys(features, "context"), dim=1, tasks=tuple(tasks))
    with torch.device("meta"):
        return weight_owners(build_model(config, inputs))
