"""Dense features of a scale that networks do not train on: told by name before training starts.

A dense feature goes into the networks as it is. Values such as a Unix timestamp make losses of 1e5
without any other sign.
"""

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.config.days import Days
from stem_torchrec.data.decode import check_values
from stem_torchrec.data.manifest import ColumnUse, check_split
from stem_torchrec.data.open_files import OpenFiles
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.errors import UserError
from stem_torchrec.storage.place import Place

STATS_FILE = "stats.json"
DENSE_STATS = "dense"
"""Key of ``stats.json``: by dense feature, what ``Scale`` holds, of the train split."""

_FAR = 10.0
"""A mean or a standard deviation beyond it is far from 0 and 1: inputs of standard networks lie
within a few units, and a layer's output and gradient grow with them."""
_NARROW = 0.01


class Scale(NamedTuple):
    """Mean, standard deviation and bounds of a column's values, missing ones as 0."""

    mean: float
    std: float
    min: float
    max: float


class Moments(NamedTuple):
    """What adds up to a ``Scale``."""

    num_values: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float = float("inf")
    highest: float = float("-inf")

    def with_values(self, values: NDArray[np.float32]) -> "Moments":
        if not len(values):
            return self
        wide = values.astype(np.float64)
        return Moments(
            self.num_values + len(wide),
            self.total + float(wide.sum()),
            self.squares + float(np.square(wide).sum()),
            min(self.lowest, float(wide.min())),
            max(self.highest, float(wide.max())),
        )

    @property
    def scale(self) -> Scale:
        mean = self.total / self.num_values
        variance = max(0.0, self.squares / self.num_values - mean**2)
        return Scale(mean, variance**0.5, self.lowest, self.highest)


def scale_warnings(scales: Mapping[str, Scale]) -> list[str]:
    """A line per dense feature that is constant, or far from mean 0 and standard deviation 1."""
    lines = []
    for name, scale in scales.items():
        found = f"dense feature {name!r}: "
        if scale.min == scale.max:
            lines.append(f"{found}always {scale.min:g}, it tells nothing")
        elif scale.std > _FAR or abs(scale.mean) > _FAR or scale.std < _NARROW:
            lines.append(
                f"{found}mean {scale.mean:.4g}, standard deviation {scale.std:.4g}; networks train "
                "on values near mean 0 and standard deviation 1: subtract the mean and divide by "
                "the standard deviation, or take the logarithm of counts and prices"
            )
    return lines


def train_scales(path: Place, schema: Schema, days: Days | None = None) -> dict[str, Scale]:
    """The scales of the dense features of train: of all rows where ``stats.json`` has them, else of
    the first row group.

    Raises:
        UserError: the split or a value is not as ``check_split`` and ``decode`` allow.
    """
    if not schema.dense:
        return {}
    stated = _stated(path)
    if all(feature.name in stated for feature in schema.dense):
        return {feature.name: stated[feature.name] for feature in schema.dense}
    return _of_first_row_group(path, schema, days)


def _stated(path: Place) -> dict[str, Scale]:
    """What ``stats.json`` says; nothing if it does not."""
    try:
        stats = json.loads((path / STATS_FILE).read_text())
        return {name: Scale(**scale) for name, scale in stats[DENSE_STATS].items()}
    except (OSError, UserError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # another tool's, an older one's, or none: the rows say it, too


def _of_first_row_group(path: Place, schema: Schema, days: Days | None) -> dict[str, Scale]:
    def scale(feature: Feature) -> Scale:
        values = check_values(table, ColumnUse(feature.name, "dense", feature), str(group))
        return Moments().with_values(values).scale

    group = check_split(path, "train", schema, days).row_groups[0]
    files = OpenFiles()
    try:
        table = files.read(group, [feature.name for feature in schema.dense])
    finally:
        files.close()
    return {feature.name: scale(feature) for feature in schema.dense}
