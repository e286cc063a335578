"""Latent preferences behind the synthetic set: who likes what, and by which features it shows.

Shapes: U users, I items, T tasks, d latent dimensions, B rows of a chunk, N dense features.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stem_torchrec.prepare.synthetic.config import SyntheticConfig
from stem_torchrec.prepare.synthetic.ties import Ties, ties_of

Floats = NDArray[np.float32]
Ids = NDArray[np.int32]

_SOLVE_ROWS = 200_000
_BISECTION_STEPS = 50


@dataclass(frozen=True)
class Bag:
    """One bag per user or item: (U or I, L) ids of which the first ``lengths`` ones count."""

    ids: Ids
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Everything a row is drawn from.

    Attributes:
        user_cdf, item_cdf: (U,) and (I,) cumulated probabilities of occurring in a row.
        user_clusters: (U,) the group of like-minded users that each belongs to.
        conflict: (U,) whether the user's preferences contradict between tasks.
        user_shared, item_shared: (U, d), (I, d) preference that all tasks follow.
        user_task: (T, U, d) preference of each task.
        item_task: (T, I, d) what it is a preference for; (1, I, d) if that is one for all tasks.
        user_bias, item_bias: (T, U), (T, I) main effects.
        dense_weights: (N, T) effect of the dense features on the logits.
        intercepts: (T,) set so that the positive ratios are met.
        features: id per user, item by feature name; ids start at 1.
        bags: bag per user or item by feature name.
    """

    user_cdf: NDArray[np.float64]
    item_cdf: NDArray[np.float64]
    user_clusters: NDArray[np.int64]
    conflict: NDArray[np.bool_]
    user_shared: Floats
    item_shared: Floats
    user_task: Floats
    item_task: Floats
    user_bias: Floats
    item_bias: Floats
    dense_weights: Floats
    intercepts: Floats
    features: dict[str, Ids]
    bags: dict[str, Bag]

    def draw_pairs(
        self, rng: np.random.Generator, num_rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices (not ids) of a user and an item for each row."""
        users = np.searchsorted(self.user_cdf, rng.random(num_rows), side="right")
        items = np.searchsorted(self.item_cdf, rng.random(num_rows), side="right")
        return users, items

    def logits(self, users: NDArray[np.int64], items: NDArray[np.int64], dense: Floats) -> Floats:
        """(T, B) log odds of a positive label."""
        shared = np.einsum("bd,bd->b", self.user_shared[users], self.item_shared[items])
        logits = np.empty((len(self.intercepts), len(users)), dtype=np.float32)
        for task in range(len(logits)):
            offered = self.item_task[task % len(self.item_task)][items]
            logits[task] = shared + np.einsum("bd,bd->b", self.user_task[task][users], offered)
            logits[task] += self.user_bias[task][users] + self.item_bias[task][items]
            logits[task] += dense @ self.dense_weights[:, task] + self.intercepts[task]
        return logits


def sigmoid(logits: Floats) -> Floats:
    """Probabilities; written so that no argument overflows."""
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * logits) + np.float32(1))


def build_world(config: SyntheticConfig) -> World:
    """Draw the latent preferences of a configuration and solve its intercepts."""
    rng = np.random.default_rng([config.seed, 0])
    num_users, num_items, num_tasks = config.users, config.items, len(config.ratios)
    ties, scale = ties_of(config), _scale(config)
    user_clusters = rng.integers(0, config.num_clusters, num_users)
    item_clusters = rng.integers(0, config.num_clusters, num_items)
    conflict = np.zeros(num_users, dtype=np.bool_)
    # Whole clusters, so that a rare task has rows enough to tell what its users want.
    by_cluster = np.argsort(user_clusters, kind="stable")
    conflict[by_cluster[: round(ties.contrary_users * num_users)]] = True
    user_shared, user_task = draw_users(rng, user_clusters, config)
    for task in range(1, num_tasks):
        user_task[task][conflict] = user_task[0][conflict] * np.float32((-1) ** task)
    item_strengths = [ties.task_strength] * (num_tasks if ties.own_items else 1)
    bare = World(
        user_cdf=_power_law_cdf(rng, num_users, config.activity_exponent),
        item_cdf=_power_law_cdf(rng, num_items, config.popularity_exponent),
        user_clusters=user_clusters,
        conflict=conflict,
        user_shared=user_shared,
        item_shared=_preferences(rng, scale * ties.shared_strength**0.5, item_clusters, config),
        user_task=user_task,
        item_task=np.stack(
            [_preferences(rng, scale * s**0.5, item_clusters, config) for s in item_strengths]
        ),
        user_bias=_biases(rng, config.bias_strength, ties, num_tasks, num_users),
        item_bias=_biases(rng, config.bias_strength, ties, num_tasks, num_items),
        dense_weights=_dense_weights(rng, config, num_tasks),
        intercepts=np.zeros(num_tasks, dtype=np.float32),
        features={},
        bags={},
    )
    described = replace(bare, features=_features(bare, config), bags=_bags(bare, config))
    return solved(described, config.ratios, np.random.default_rng([config.seed, 1]))


def draw_users(
    rng: np.random.Generator, clusters: NDArray[np.int64], config: SyntheticConfig
) -> tuple[Floats, Floats]:
    """(U, d) preferences that all tasks follow, and (T, U, d) those of each task."""
    ties, scale = ties_of(config), _scale(config)
    shared, *task = (
        _preferences(rng, scale * strength**0.5, clusters, config)
        for strength in (ties.shared_strength, *[ties.task_strength] * len(config.ratios))
    )
    return shared, np.stack(task)


def _scale(config: SyntheticConfig) -> float:
    """A dot product of d normals has standard deviation sqrt(d)."""
    return float(config.latent_dim**-0.25)


def _normal(rng: np.random.Generator, scale: float, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def _power_law_cdf(rng: np.random.Generator, size: int, exponent: float) -> NDArray[np.float64]:
    weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
    cdf = np.cumsum(rng.permutation(weights))
    cdf /= cdf[-1]
    return cdf


def _preferences(
    rng: np.random.Generator,
    scale: float,
    clusters: NDArray[np.int64],
    config: SyntheticConfig,
) -> Floats:
    """(U or I, d): the cluster's vector and the user's (item's) own part.

    All clusters' vectors have the same length, so no cluster is without a preference.
    """
    centres = _normal(rng, 1.0, config.num_clusters, config.latent_dim)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    length = scale * (config.latent_dim * (1 - config.individuality)) ** 0.5
    own = _normal(rng, scale * config.individuality**0.5, len(clusters), config.latent_dim)
    return np.float32(length) * centres[clusters] + own


def _biases(
    rng: np.random.Generator, strength: float, ties: Ties, num_tasks: int, size: int
) -> Floats:
    """(T, size): a share of the variance common to the tasks, the rest the task's own."""
    common = _normal(rng, strength * ties.common_bias**0.5, 1, size)
    own = _normal(rng, strength * (1 - ties.common_bias) ** 0.5, num_tasks, size)
    if ties.contrary_biases:
        own = own[:1] * np.float32(-1) ** np.arange(num_tasks, dtype=np.float32)[:, None]
    return common + own


def _dense_weights(rng: np.random.Generator, config: SyntheticConfig, num_tasks: int) -> Floats:
    each = config.dense_strength / max(config.num_dense, 1) ** 0.5
    return _normal(rng, each, config.num_dense, num_tasks)


def solved(world: World, ratios: tuple[float, ...], rng: np.random.Generator) -> World:
    """The world with intercepts that meet the positive ratios, by bisection on a sample of rows."""
    world = replace(world, intercepts=np.zeros_like(world.intercepts))
    users, items = world.draw_pairs(rng, _SOLVE_ROWS)
    dense = _normal(rng, 1.0, _SOLVE_ROWS, len(world.dense_weights))
    logits = world.logits(users, items, dense)
    low = np.full(len(ratios), -50.0)
    high = np.full(len(ratios), 50.0)
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        means = sigmoid(logits + middle[:, None].astype(np.float32)).mean(axis=1)
        below = means < np.asarray(ratios)
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return replace(world, intercepts=((low + high) / 2).astype(np.float32))


def _features(world: World, config: SyntheticConfig) -> dict[str, Ids]:
    """Each feature orders users (items) along one random direction of their preferences and
    cuts that order into as many equal cells as it has ids."""
    features = {}
    for index, (name, side, num_embeddings) in enumerate(config.id_features()):
        if name in ("user_id", "item_id") or side == "context":
            continue
        rng = np.random.default_rng([config.seed, 2, index])
        latents = _latents(world, side)
        order = np.argsort(latents @ _normal(rng, 1.0, latents.shape[1]), kind="stable")
        cells = np.empty(len(order), dtype=np.int64)
        cells[order] = np.arange(len(order)) * (num_embeddings - 1) // len(order)
        features[name] = (rng.permutation(num_embeddings - 1)[cells] + 1).astype(np.int32)
    return features


def _bags(world: World, config: SyntheticConfig) -> dict[str, Bag]:
    """Element k of a bag tells in which of a few equal cells a random direction k puts the user
    or item; a bag holds the first 0 to ``bag_length`` elements."""
    bags = {}
    for index, (name, side) in enumerate(config.bag_features()):
        rng = np.random.default_rng([config.seed, 3, index])
        latents = _latents(world, side)
        levels = (config.bag_size - 1) // config.bag_length
        ids = np.empty((len(latents), config.bag_length), dtype=np.int32)
        for element in range(config.bag_length):
            order = np.argsort(latents @ _normal(rng, 1.0, latents.shape[1]), kind="stable")
            cells = np.arange(len(order)) * levels // len(order)
            ids[order, element] = 1 + element * levels + cells
        lengths = rng.integers(0, config.bag_length + 1, len(latents))
        bags[name] = Bag(ids, lengths)
    return bags


def _latents(world: World, side: str) -> Floats:
    if side == "user":
        return np.concatenate([world.user_shared, *world.user_task], axis=1)
    return np.concatenate([world.item_shared, *world.item_task, world.item_bias.T], axis=1)
