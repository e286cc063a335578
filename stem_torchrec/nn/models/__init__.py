"""The models by name, one in each file here; a file more is a model more."""

from stem_torchrec.nn.discovery import named_in
from stem_torchrec.nn.model import Model

MODELS: dict[str, type[Model]] = named_in(__name__, Model)  # type: ignore[type-abstract]
"""Every model of the package."""
