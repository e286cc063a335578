"""The workloads of ``throughput.py``: sizes, config and prepared data."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stem_torchrec.config import Config
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import SCHEMA_FILE, load_schema
from stem_torchrec.prepare.synthetic.prepare import SyntheticConfig, prepare_synthetic

# Ids of user, item, two features of the user, three of the item, one of the context.
VOCABULARIES = (70_000, 400_000, 75_000, 400, 150_000, 90_000, 100, 5)
# 23 ids of a small set, as the KuaiRand slice has them: user, item, ten features of each, one of
# the context.
SMALL_DATA = (
    450,
    1_400,
    *(8, 3, 4, 4, 30, 30, 30, 60, 9, 5),
    *(1_100, 4, 20, 700, 3, 60, 30, 18, 64),
)
SMALL_DATA += (32, 25)
SMALLEST_SCALED_SHARE = 1_000  # vocabularies of less than a thousandth of all rows stay
L2 = 1e-6


@dataclass(frozen=True)
class Workload:
    """Data and model sizes that all contestants share.

    Attributes:
        path: prepared folder.
        vocabularies: ids of each feature; every owner (shared, each task) has as many rows.
        expert_widths: layers of an expert.
        hidden_widths: hidden layers of gates and towers.
        side_features: how many of the features after user and item are the user's, and how many
            the item's; the others are the context's.
    """

    path: Path
    vocabularies: tuple[int, ...] = VOCABULARIES
    batch_size: int = 4096
    dim: int = 16
    expert_widths: tuple[int, ...] = (512, 512, 512)
    hidden_widths: tuple[int, ...] = (128, 64)
    num_tasks: int = 2
    side_features: tuple[int, int] = (2, 3)

    @property
    def table_rows(self) -> int:
        """Rows of one owner's tables."""
        return sum(self.vocabularies)

    def config(self, overrides: dict[str, dict[str, Any]]) -> Config:
        """The trainer's config; ``overrides`` are keys by section, over the workload's."""
        sections: dict[str, dict[str, Any]] = {
            "run": {"dir": self.path / "run"},
            "data": {"path": self.path},
            "model": {
                "num_shared_experts": 1,
                "num_task_experts": 1,
                "expert_widths": self.expert_widths,
                "gate_widths": self.hidden_widths,
                "tower_widths": self.hidden_widths,
            },
            "embedding": {"dim": self.dim, "weight_decay": L2},
            "train": {"batch_size": self.batch_size},
            "distributed": {"device": "cpu"},
        }
        for section, keys in overrides.items():
            sections[section] = sections.get(section, {}) | keys
        return Config.model_validate(sections)

    def reader(self, prefetch: int) -> ParquetReader:
        return ParquetReader(
            self.path,
            "train",
            load_schema(self.path),
            batch_size=self.batch_size,
            shuffle=True,
            prefetch=prefetch,
        )

    def prepare(self, num_rows: int) -> None:
        """Write the train split where it is not there yet: power-law users and items."""
        if (self.path / SCHEMA_FILE).is_file():
            return
        config = SyntheticConfig(
            vocabulary_sizes=self.vocabularies,
            num_user_features=self.side_features[0],
            num_item_features=self.side_features[1],
            num_noise_features=len(self.vocabularies) - 2 - sum(self.side_features),
            num_tasks=self.num_tasks,
            train_rows=num_rows,
            valid_rows=1,
            test_rows=1,
        )
        prepare_synthetic(config, self.path)


def scaled(vocabularies: tuple[int, ...], table_rows: int) -> tuple[int, ...]:
    """Vocabularies enlarged in proportion to ``table_rows`` in all; very small ones stay."""
    is_large = [size * SMALLEST_SCALED_SHARE >= sum(vocabularies) for size in vocabularies]
    kept = sum(size for size, large in zip(vocabularies, is_large, strict=True) if not large)
    factor = (table_rows - kept) / (sum(vocabularies) - kept)
    return tuple(
        round(size * factor) if large else size
        for size, large in zip(vocabularies, is_large, strict=True)
    )
