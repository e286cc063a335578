"""A small data set with everything a batch can hold, and training on it.

Batches are made as rows, so that the rows of several ranks can be joined to the one batch that a
single rank would see.
"""

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec import checkpoint
from stem_torchrec.config import Config
from stem_torchrec.config.reading import validate
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.schema import SCHEMA_FILE, Feature, Schema, Task
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.step import StepOutput
from stem_torchrec.distributed.tables import local_shards
from stem_torchrec.training.session import Session, build

# item and history share a table; three rows do not split evenly; dim 8 gives two column shards.
SCHEMA = Schema(
    features=(
        Feature(name="user", kind="id", side="user", num_embeddings=30),
        Feature(
            name="history",
            kind="bag",
            side="user",
            num_embeddings=21,
            pooling="mean",
            table="item",
        ),
        Feature(name="age", kind="dense", side="user"),
        Feature(name="item", kind="id", side="item", num_embeddings=21),
        Feature(name="tags", kind="bag", side="item", num_embeddings=9, pooling="sum"),
        Feature(name="price", kind="dense", side="item"),
        Feature(name="hour", kind="id", num_embeddings=3),
    ),
    tasks=(Task(name="click"), Task(name="like"), Task(name="share")),
    sample_weight="weight",
)
DIM = 8


@dataclass(frozen=True)
class Rows:
    """B rows: ids per feature and row, dense (B, N), labels (B, T) NaN for null, weights (B,)."""

    ids: dict[str, list[list[int]]]
    dense: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def random_rows(
    generator: np.random.Generator, num: int, schema: Schema = SCHEMA, null_share: float = 0.3
) -> Rows:
    def bag(feature: Feature) -> list[int]:
        length = generator.integers(0, 5) if feature.kind == "bag" else 1
        # Ids of low rank are frequent; some occur twice in a bag.
        return (generator.random(length) ** 2 * feature.num_embeddings).astype(int).tolist()

    labels = generator.integers(0, 2, (num, len(schema.tasks))).astype(np.float32)
    labels[generator.random(labels.shape) < null_share] = np.nan
    return Rows(
        ids={feature.name: [bag(feature) for _ in range(num)] for feature in schema.sparse},
        dense=generator.normal(size=(num, len(schema.dense))).astype(np.float32),
        labels=labels,
        weights=generator.uniform(0.5, 2, num).astype(np.float32),
    )


def join_rows(parts: Sequence[Rows]) -> Rows:
    names = parts[0].ids
    return Rows(
        {name: [bag for part in parts for bag in part.ids[name]] for name in names},
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def batch_of(rows: Rows, schema: Schema = SCHEMA, num_rows: int | None = None) -> Batch:
    """The rows as a batch of ``num_rows``: padding fills it up, as on a rank that has fewer."""
    num_padding = (num_rows or len(rows)) - len(rows)

    def fill(values: np.ndarray, padding: float) -> Tensor:
        shape = (num_padding, *values.shape[1:])
        return torch.from_numpy(np.concatenate([values, np.full(shape, padding, np.float32)]))

    bags = {name: [*per_row, *([[]] * num_padding)] for name, per_row in rows.ids.items()}
    return Batch(
        sparse=_jagged(bags, len(rows) + num_padding),
        dense=fill(rows.dense, 0.0),
        labels=fill(rows.labels, np.nan),
        weights=fill(rows.weights, 0.0) if schema.sample_weight else None,
        num_samples=len(rows),
    )


def _jagged(ids: dict[str, list[list[int]]], num_rows: int) -> KeyedJaggedTensor:
    bags = [bag for per_row in ids.values() for bag in per_row]
    return KeyedJaggedTensor(
        keys=list(ids),
        values=torch.tensor([i for bag in bags for i in bag], dtype=torch.int64),
        lengths=torch.tensor([len(bag) for bag in bags], dtype=torch.int32),
        stride=num_rows,
    )


def config_of(folder: Path, schema: Schema = SCHEMA, **sections: dict[str, Any]) -> Config:
    """A small config whose data folder holds the schema alone; keys over the small defaults."""
    _save(schema, folder)
    content: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "data": {"path": str(folder)},
        "model": {
            "expert_widths": [24, 16],
            "gate_widths": [8],
            "tower_widths": [16],
            "num_shared_experts": 2,
            # Biases other than 0: rounding puts no ReLU on another side of it.
            "init": "uniform",
        },
        # Large values and rates: every step moves every table by far more than the tolerance.
        "embedding": {"dim": DIM, "init_std": 0.5, "lr": 0.2},
        "optim": {"lr": 0.02},
        "train": {"batch_size": 8},
        "distributed": {"device": "cpu"},
    }
    for section, keys in sections.items():
        content.setdefault(section, {}).update(keys)
    return validate(content)


def _save(schema: Schema, folder: Path) -> None:
    """Ranks may each write it, and read it while another does."""
    aside = folder / f"schema_of_{os.getpid()}"
    aside.mkdir(parents=True, exist_ok=True)
    schema.save(aside)
    (aside / SCHEMA_FILE).replace(folder / SCHEMA_FILE)
    aside.rmdir()


class State(NamedTuple):
    """Tables by name, whole; dense weights by name."""

    tables: dict[str, Tensor]
    dense: dict[str, Tensor]


def state_of(session: Session) -> State:
    """Every table, gathered from all ranks, and every dense weight. Collective.

    Asserts that the ranks' pieces cover each table and that replicas are equal bit for bit.
    """
    pieces = [
        (shard.table, shard.first_row, shard.first_column, shard.values.clone().cpu())
        for shard in local_shards(session.model)
    ]
    dense = {
        name: value.detach().clone().cpu()
        for name, value in session.model.state_dict().items()
        if ".embedding_bags." not in name
    }
    everywhere = gather((pieces, dense), session.ranks)
    all_pieces = [piece for rank_pieces, _ in everywhere for piece in rank_pieces]
    sizes: dict[str, tuple[int, int]] = {}
    for table, row, column, values in all_pieces:
        rows, columns = sizes.get(table, (0, 0))
        sizes[table] = max(rows, row + values.shape[0]), max(columns, column + values.shape[1])
    tables = {table: torch.full(size, float("nan")) for table, size in sorted(sizes.items())}
    for table, row, column, values in all_pieces:
        place = tables[table][row : row + values.shape[0], column : column + values.shape[1]]
        assert (place.isnan() | (place == values)).all(), f"replicas of {table} differ"
        place.copy_(values)
    for table, values in tables.items():
        assert not values.isnan().any(), f"{table} is not covered by the ranks' pieces"
    for _, others in everywhere[1:]:
        for name, value in dense.items():
            assert torch.equal(value, others[name]), f"replicas of {name} differ"
    return State(tables, dense)


class Values:
    """Plain values as a part of a checkpoint; loading replaces them."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = dict(state)


def parts_of(session: Session, position: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a checkpoint holds of a session; the position is that of a test's own making."""
    return {
        "model": session.model,
        "optimizers": session.optimizers,
        "position": Values(**(position or {"step": 0})),
    }


def load_checkpoint(folder: Any, session: Session, ranks: Ranks, **position: Any) -> dict[str, Any]:
    """Read a checkpoint into a session; its position, of the names given. Collective."""
    parts = parts_of(session, position or None)
    session.optimizers.make_state()
    checkpoint.load(folder, parts, ranks)
    return parts["position"].values


def gather(value: Any, ranks: Ranks) -> list[Any]:
    """Every rank's ``value`` on every rank. Collective."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    torch.distributed.all_gather_object(values, value, group=ranks.host_group)
    return values


def take_steps(session: Session, batches: Iterable[Batch], taken: int = 0) -> list[StepOutput]:
    """One train step per batch. Collective.

    Args:
        taken: steps that the session has taken before.
    """
    stream, done = iter(batches), []
    session.recommender.train()
    while True:
        session.optimizers.set_learning_rates(1.0)
        session.optimizers.set_applied_steps(taken + len(done))
        try:
            done.append(session.step(stream))
        except StopIteration:
            return done


def run_steps(session: Session, batches: Iterable[Batch], taken: int = 0) -> Tensor:
    """The global loss per step and task, (steps, T), of ``take_steps``. Collective."""
    losses = [done.dense.losses for done in take_steps(session, batches, taken)]
    return torch.stack([session.ranks.rank_mean(local)() for local in losses])


def start(config: Config, ranks: Ranks) -> Session:
    """A fresh model with what trains it. Collective."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "embedding.optimizer adam on CPU", UserWarning)
        return build(config, ranks)


class Trained(NamedTuple):
    before: State
    after: State
    losses: Tensor


def train_on(ranks: Ranks, config: Config, batches: Sequence[Batch]) -> Trained:
    """A fresh model, before and after a step on each of this rank's batches. Collective."""
    session = start(config, ranks)
    before = state_of(session)
    losses = run_steps(session, batches)
    return Trained(before, state_of(session), losses)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """By name, the largest absolute difference."""
    assert one.keys() == other.keys()
    return {name: _distance(one[name], other[name]) for name in one}


def _distance(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max()) if one.numel() else 0.0


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    differences = largest_difference(one, other)
    far = {name: value for name, value in differences.items() if not value <= tolerance}
    assert not far, f"differ by more than {tolerance}: {far}"


def assert_moved(trained: Trained, least: float = 1e-4) -> None:
    """Every table changed by far more than the tolerance of a comparison."""
    moves = largest_difference(trained.before.tables, trained.after.tables)
    still = {name: move for name, move in moves.items() if not move > least}
    assert not still, f"tables that training left where they were: {still}"
