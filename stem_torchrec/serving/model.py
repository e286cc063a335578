"""An exported model in memory: tables that are mapped, a dense part that is loaded.

B rows, D embedding dimension of a feature, T tasks.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stem_torchrec.errors import UserError
from stem_torchrec.serving.dense_part import DensePart
from stem_torchrec.serving.features import Ids, Inputs, ServedFeature
from stem_torchrec.serving.tables import Table, table_file

ABOUT = "export.json"
DENSE_PART = "dense.pt2"


@dataclass(frozen=True)
class About:
    """What ``export.json`` says of a model.

    Attributes:
        name: the model's, by which servers know it.
        owners: who has tables for which features, in the order of the columns.
        tables: precision of the tables.
        has_encoder: rows are raw values; else they are ids, as prepared data has them.
        notes: where it comes from and how good it is; nothing that is needed.
    """

    name: str
    tasks: tuple[str, ...]
    features: tuple[ServedFeature, ...]
    owners: Mapping[str, tuple[str, ...]]
    tables: str
    has_encoder: bool
    notes: Mapping[str, Any]

    def feature(self, name: str) -> ServedFeature:
        return next(feature for feature in self.features if feature.name == name)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_about(folder: Path) -> About:
    """``export.json`` of an export.

    Raises:
        UserError: it is missing or damaged.
    """
    file = folder / ABOUT
    try:
        content = json.loads(file.read_bytes())
        # Earlier versions wrote one dimension of all tables.
        dim = {"dim": content.pop("dim")} if "dim" in content else {}
        content["features"] = tuple(ServedFeature(**dim | part) for part in content["features"])
        content["owners"] = {owner: tuple(names) for owner, names in content["owners"].items()}
        content["tasks"] = tuple(content["tasks"])
        return About(**content)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{file}: is damaged") from None


class ServedModel:
    """Ids -> logits, by tables and dense part of an export; threads may share it.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self.about = about
        self._dense_part = DensePart(folder / DENSE_PART)
        self._tables: dict[tuple[str, str], Table] = {}
        for owner, names in about.owners.items():
            for feature in map(about.feature, names):
                key = owner, feature.table
                if key not in self._tables:
                    file = table_file(folder, *key)
                    self._tables[key] = Table(file, feature.num_embeddings, feature.dim)

    def table(self, owner: str, feature: str) -> Table:
        """An owner's table of one of its features."""
        return self._tables[owner, self.about.feature(feature).table]

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Tensor:
        """B rows -> (B, T) float32."""
        num_rows = len(inputs.dense)
        if not num_rows:
            return torch.zeros(0, len(self.about.tasks))
        pooled = {
            owner: torch.cat(
                [self._pooled(owner, name, inputs.ids[name], num_rows) for name in names], dim=1
            )
            for owner, names in self.about.owners.items()
        }
        return self._dense_part.logits(pooled, inputs.dense)

    def _pooled(self, owner: str, name: str, ids: Ids, num_rows: int) -> Tensor:
        """(B, D): a row of the table each, or the sum or mean of a bag's."""
        rows = self.table(owner, name).rows(ids.values)
        if ids.lengths is None:
            return rows
        row = torch.repeat_interleave(torch.arange(num_rows), ids.lengths)
        sums = torch.zeros(num_rows, rows.shape[1]).index_add_(0, row, rows)
        if self.about.feature(name).is_mean:
            return sums / ids.lengths.clamp(min=1)[:, None]
        return sums
