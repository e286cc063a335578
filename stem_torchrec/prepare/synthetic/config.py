"""What the synthetic generator plants: sizes, strengths, tasks and features."""

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from stem_torchrec.config.frozen import Frozen
from stem_torchrec.data.schema import Feature, Schema, Task

_FREQUENT, _RARE = 0.28, 0.016
_MAX_SEED = (1 << 63) - 1
_MAX_ROWS = 10**12
_MAX_IDS = 1 << 31
_DAYS_OF_DRIFT = 7
_RARE_TASK_RATIO, _RARE_TASK_MISSING = 0.05, 0.98
_LOSS_SCALE = 100
_TASK_NAMES = ("click", "like", "follow", "forward", "comment", "hate")

Side = Literal["user", "item", "context"]
WorldName = Literal[
    "contradicting", "independent", "opposite", "partly_shared", "rare", "scales", "drift"
]
_USED_BY: dict[str, tuple[WorldName, ...]] = {
    "conflict_share": ("contradicting",),
    "shared_share": ("partly_shared", "rare", "scales", "drift"),
    "day_correlation": ("drift",),
}


class SyntheticConfig(Frozen):
    """What the generator plants. Strengths are standard deviations in the logit."""

    world: WorldName = Field(
        "contradicting", description="how the preferences of the tasks hang together"
    )
    seed: int = Field(0, ge=0, le=_MAX_SEED, description="seed of everything that is drawn")
    train_rows: int = Field(400_000, ge=1, le=_MAX_ROWS, description="rows of the train split")
    valid_rows: int = Field(50_000, ge=1, le=_MAX_ROWS, description="rows of the valid split")
    test_rows: int = Field(50_000, ge=1, le=_MAX_ROWS, description="rows of the test split")
    days: int | None = Field(
        None,
        ge=1,
        le=3_650,
        description="days of the train split, each a date=YYYY-MM-DD folder; null: 7 in the world "
        "drift, elsewhere one file without days",
    )
    row_group_rows: int = Field(
        65_536, ge=1, le=1 << 27, description="rows drawn and written at once"
    )

    num_users: int = Field(2_000, ge=1, le=100_000_000, description="users")
    num_items: int = Field(1_000, ge=1, le=100_000_000, description="items")
    activity_exponent: float = Field(0.5, ge=0, le=3, description="power law of users, 0 uniform")
    popularity_exponent: float = Field(0.8, ge=0, le=3, description="power law of items, 0 uniform")

    num_tasks: int = Field(2, ge=1, le=64, description="tasks")
    task_names: tuple[str, ...] | None = Field(
        None, description="names of the tasks; null: click, like, follow, ..."
    )
    positive_ratios: tuple[float, ...] | None = Field(
        None, description="share of positive labels per task; null: 0.28 falling to 0.016"
    )
    missing_label_share: tuple[float, ...] | None = Field(
        None, description="share of labels not observed (null) per task; null: none"
    )
    conflict_share: float = Field(
        0.3, ge=0, le=1, description="share of users whose preferences contradict between tasks"
    )
    shared_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a preference's variance common to the tasks, in the worlds "
        "partly_shared, rare, scales and drift",
    )
    day_correlation: float = Field(
        0.8,
        ge=0,
        le=1,
        description="correlation of a user's preferences with those of the day before, in the "
        "world drift",
    )
    num_clusters: int = Field(
        24, ge=1, le=10_000, description="groups of like-minded users, and of alike items"
    )
    individuality: float = Field(
        0.1, ge=0, le=1, description="share of a preference's variance that is not its cluster's"
    )
    latent_dim: int = Field(2, ge=1, le=64, description="dimensions of a latent preference")
    shared_strength: float = Field(0.8, ge=0, le=10, description="preference common to the tasks")
    task_strength: float = Field(1.2, ge=0, le=10, description="preference of each task")
    bias_strength: float = Field(0.5, ge=0, le=10, description="main effect of a user, of an item")

    num_user_features: int = Field(3, ge=0, le=500, description="id features telling of the user")
    num_item_features: int = Field(3, ge=0, le=500, description="id features telling of the item")
    num_noise_features: int = Field(0, ge=0, le=500, description="id features telling nothing")
    feature_size: int = Field(
        100, ge=2, le=_MAX_IDS, description="ids of each of these features, 0 included"
    )
    vocabulary_sizes: tuple[int, ...] | None = Field(
        None,
        description="ids (0 included) of user_id, item_id, user, item and noise features in turn; "
        "replaces num_users, num_items and feature_size",
    )
    num_bags: int = Field(0, ge=0, le=500, description="bag features, of items and users in turn")
    bag_size: int = Field(61, ge=2, le=_MAX_IDS, description="ids of each bag feature, 0 included")
    bag_length: int = Field(
        6, ge=1, le=1_000, description="longest bag, ids; the shortest is empty"
    )
    num_dense: int = Field(0, ge=0, le=1_000, description="dense features, standard normal")
    dense_strength: float = Field(0.5, ge=0, le=10, description="effect of all dense features")

    @property
    def names(self) -> tuple[str, ...]:
        """Task names."""
        if self.task_names is not None:
            return self.task_names
        further = tuple(f"task_{number}" for number in range(len(_TASK_NAMES) + 1, 65))
        return (_TASK_NAMES + further)[: self.num_tasks]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Positive ratio per task; the default falls from frequent to rare."""
        if self.positive_ratios is not None:
            return self.positive_ratios
        if self.world == "scales":
            return _ratios_of_scales(self.num_tasks)
        rarest = _RARE_TASK_RATIO if self.world == "rare" else _RARE
        steps = np.geomspace(_FREQUENT, rarest, max(self.num_tasks, 2))[: self.num_tasks]
        return tuple(float(step) for step in steps)

    @property
    def missing_shares(self) -> tuple[float, ...]:
        """Share of labels that are not observed, per task."""
        if self.missing_label_share is not None:
            return self.missing_label_share
        last = _RARE_TASK_MISSING if self.world == "rare" else 0.0
        return (*[0.0] * (self.num_tasks - 1), last)

    @property
    def num_days(self) -> int | None:
        """Days of the train split; None if it is one file."""
        return _DAYS_OF_DRIFT if self.world == "drift" and self.days is None else self.days

    @property
    def users(self) -> int:
        return self.vocabulary_sizes[0] - 1 if self.vocabulary_sizes else self.num_users

    @property
    def items(self) -> int:
        return self.vocabulary_sizes[1] - 1 if self.vocabulary_sizes else self.num_items

    @property
    def num_id_features(self) -> int:
        return 2 + self.num_user_features + self.num_item_features + self.num_noise_features

    def id_features(self) -> list[tuple[str, Side, int]]:
        """Name, side and number of ids (the unused 0 included) of each id feature."""
        sides: list[tuple[str, Side]] = [("user_id", "user"), ("item_id", "item")]
        sides += [(f"user_feature_{k}", "user") for k in range(self.num_user_features)]
        sides += [(f"item_feature_{k}", "item") for k in range(self.num_item_features)]
        sides += [(f"noise_{k}", "context") for k in range(self.num_noise_features)]
        sizes = self.vocabulary_sizes or (
            self.num_users + 1,
            self.num_items + 1,
            *([self.feature_size] * (self.num_id_features - 2)),
        )
        return [(name, side, size) for (name, side), size in zip(sides, sizes, strict=True)]

    def bag_features(self) -> list[tuple[str, Side]]:
        """Name and side of each bag feature."""
        return [(f"bag_{k}", "user" if k % 2 else "item") for k in range(self.num_bags)]

    def schema_of_data(self) -> Schema:
        """The schema of the folder this configuration prepares; users are the groups."""
        ids = [
            Feature(name=name, kind="id", side=side, num_embeddings=size)
            for name, side, size in self.id_features()
        ]
        bags = [
            Feature(name=name, kind="bag", side=side, num_embeddings=self.bag_size, pooling="mean")
            for name, side in self.bag_features()
        ]
        dense = [Feature(name=f"dense_{k}", kind="dense") for k in range(self.num_dense)]
        return Schema(
            features=(*ids, *bags, *dense),
            tasks=tuple(Task(name=name) for name in self.names),
            group="user_id",
        )

    @model_validator(mode="after")
    def _lists_fit(self) -> "SyntheticConfig":
        for key in ("task_names", "positive_ratios", "missing_label_share"):
            values = getattr(self, key)
            if values is not None and len(values) != self.num_tasks:
                raise ValueError(f"{key}: {len(values)} values for num_tasks = {self.num_tasks}")
        if bad := [ratio for ratio in self.positive_ratios or () if not 0 < ratio < 1]:
            raise ValueError(f"positive_ratios: {bad[0]} is not between 0 and 1")
        if bad := [share for share in self.missing_label_share or () if not 0 <= share < 1]:
            raise ValueError(f"missing_label_share: {bad[0]} is not in [0, 1)")
        if self.num_bags and self.bag_size <= self.bag_length:
            raise ValueError(
                f"bag_size: {self.bag_size} must be above bag_length = {self.bag_length}"
            )
        self._world_fits()
        self._vocabulary_fits()
        schema = self.schema_of_data()
        if taken := {feature.name for feature in schema.features} & set(schema.task_names):
            raise ValueError(f"task_names: {sorted(taken)[0]!r} is the name of a feature")
        return self

    def _world_fits(self) -> None:
        for key, worlds in _USED_BY.items():
            if key in self.model_fields_set and self.world not in worlds:
                raise ValueError(
                    f"{key} has no effect in the world {self.world}; it has in {', '.join(worlds)}"
                )
        if self.num_days is not None and self.num_days > self.train_rows:
            raise ValueError(f"days: {self.num_days} is more than train_rows = {self.train_rows}")

    def _vocabulary_fits(self) -> None:
        if self.vocabulary_sizes is None:
            return
        if len(self.vocabulary_sizes) != self.num_id_features:
            raise ValueError(
                f"vocabulary_sizes: {len(self.vocabulary_sizes)} values for {self.num_id_features} "
                "id features (user_id, item_id, num_user_features, num_item_features, "
                "num_noise_features)"
            )
        if bad := [size for size in self.vocabulary_sizes if not 2 <= size <= _MAX_IDS]:
            raise ValueError(f"vocabulary_sizes: {bad[0]} is not between 2 and 2^31")
        replaced = {"num_users", "num_items", "feature_size"} & self.model_fields_set
        if replaced:
            raise ValueError(f"vocabulary_sizes replaces {sorted(replaced)[0]}: give one of them")


def _ratios_of_scales(num_tasks: int) -> tuple[float, ...]:
    """From 1/2 down to where the entropy, the loss of a constant guess, is a hundredth of that."""
    entropies = np.geomspace(1, 1 / _LOSS_SCALE, max(num_tasks, 2))[:num_tasks] * np.log(2)
    low, high = np.full(num_tasks, 1e-9), np.full(num_tasks, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        entropy = -middle * np.log(middle) - (1 - middle) * np.log1p(-middle)
        low = np.where(entropy < entropies, middle, low)
        high = np.where(entropy < entropies, high, middle)
    return tuple(float(ratio) for ratio in high)
