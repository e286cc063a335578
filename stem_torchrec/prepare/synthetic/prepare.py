"""A seeded multi-task set with known truth: in which tasks agree, disagree, or change.

Shapes: T tasks, B rows of a chunk, N dense features.
"""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stem_torchrec.data.auc import auc
from stem_torchrec.data.schema import SPLITS, Schema
from stem_torchrec.prepare.engine.disk_full import disk_full_named
from stem_torchrec.prepare.engine.prepared import (
    arrow_schema,
    open_parquet,
    prepared_folder,
    write_metadata,
)
from stem_torchrec.prepare.synthetic.config import SyntheticConfig
from stem_torchrec.prepare.synthetic.drift import files_of, worlds_of
from stem_torchrec.prepare.synthetic.world import Bag, World, build_world, sigmoid

__all__ = ["BEST_FILE", "TRUTH_FOLDER", "SyntheticConfig", "prepare_synthetic"]

TRUTH_FOLDER = "truth"
BEST_FILE = "best.json"

Scored = tuple[NDArray[np.float32], NDArray[np.int8]]
"""True probabilities of a positive label, and labels."""


def prepare_synthetic(
    config: SyntheticConfig, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Generate a prepared folder with the truth beside it; returns its statistics.

    Users and items share one latent preference and have one per task; how these hang together,
    ``config.world`` says. A user in conflict wants from every second task the opposite of what it
    wants from the first. ``out/truth`` holds ``{split}.parquet`` (columns ``p_TASK``: float32
    probability of a positive label, rows in the order of the split), ``users.parquet``
    (``user_id``, ``conflict``) and ``best.json``: test AUC (``auc``) and normalized entropy
    (``ne``) of these probabilities per task, which no model can expect to beat; null where a task
    has labels of one kind. The statistics carry the AUC as ``bayes_auc``.

    Each row group has its own generator, seeded by (seed, split, number), so memory is bounded by
    one row group and the rows do not depend on the order in which groups are drawn.

    Raises:
        UserError: ``out`` is occupied (see ``prepared_folder``).
        EnvironmentFailure: the disk is full.
    """
    schema = config.schema_of_data()
    with (
        prepared_folder(out, overwrite=overwrite) as folder,
        disk_full_named(folder.parent, _needed_bytes(config)),
    ):
        (folder / TRUTH_FOLDER).mkdir()
        world = build_world(config)
        worlds = worlds_of(world, config)
        for split in SPLITS:
            scored = _write_split(folder, split, schema, worlds, config)
        _write_conflicts(folder, world)
        of_tasks = dict(zip(schema.task_names, scored, strict=True))
        bayes_auc = {
            name: auc(scores, labels, np.ones(len(labels)))
            for name, (scores, labels) in of_tasks.items()
        }
        best = {"auc": bayes_auc, "ne": {name: _entropy(*own) for name, own in of_tasks.items()}}
        (folder / TRUTH_FOLDER / BEST_FILE).write_text(json.dumps(best, indent=2) + "\n")
        return write_metadata(
            folder,
            schema,
            user_column="user_id",
            item_column="item_id",
            extra={"bayes_auc": bayes_auc},
        )


def _needed_bytes(config: SyntheticConfig) -> int:
    """Disk space for rows and truth, as if nothing were compressed."""
    numbers = config.num_id_features + config.num_dense + config.num_bags * config.bag_length
    per_row = 4 * numbers + (1 + 4) * config.num_tasks
    return per_row * (config.train_rows + config.valid_rows + config.test_rows)


def _entropy(probabilities: NDArray[np.float32], labels: NDArray[np.int8]) -> float | None:
    """Mean log loss over the entropy of the mean label; None where that is 0."""

    def log_loss(predicted: NDArray[np.float64]) -> float:
        return float(-np.log(np.where(labels == 1, predicted, 1 - predicted)).mean())

    if len(np.unique(labels)) < 2:
        return None
    constant = np.full(len(labels), labels.mean(dtype=np.float64))
    return log_loss(probabilities.astype(np.float64)) / log_loss(constant)


def _write_split(
    folder: Path, split: str, schema: Schema, worlds: Iterator[World], config: SyntheticConfig
) -> list[Scored]:
    """Write one split and its truth; returns true probability and label of the observed rows per
    task for the test split, nothing for the others. Takes one world per file."""
    truth_columns = pa.schema([(f"p_{name}", pa.float32()) for name in schema.task_names])
    columns = arrow_schema(schema)
    seeds = ([config.seed, 4, SPLITS.index(split), chunk] for chunk in count())
    kept: list[list[Scored]] = [[] for _ in config.names]
    with open_parquet(folder / TRUTH_FOLDER / f"{split}.parquet", truth_columns) as truth_file:
        for name, num_rows in files_of(split, config):
            file = folder / split / name
            file.parent.mkdir(exist_ok=True)
            with open_parquet(file, columns) as rows_file:
                for drawn in _draw_file(num_rows, seeds, next(worlds), config):
                    truth = pa.table(list(drawn.truth), schema=truth_columns)
                    truth_file.write_table(truth, len(truth))
                    rows_file.write_table(drawn.rows(columns), len(truth))
                    if split == "test":
                        for own, scored in zip(kept, drawn.scored(), strict=True):
                            own.append(scored)
    return [
        (np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts]))
        for parts in kept
        if parts
    ]


class _Drawn(NamedTuple):
    """A chunk: input columns, then (T, B) true probabilities, labels, and which labels are
    observed."""

    inputs: list[pa.Array]
    truth: NDArray[np.float32]
    labels: NDArray[np.int8]
    observed: NDArray[np.bool_]

    def rows(self, columns: pa.Schema) -> pa.Table:
        pairs = zip(self.labels, self.observed, strict=True)
        outcomes = [pa.array(labels, mask=~seen) for labels, seen in pairs]
        return pa.table([*self.inputs, *outcomes], schema=columns)

    def scored(self) -> list[Scored]:
        """Of the observed rows, per task."""
        tasks = zip(self.truth, self.labels, self.observed, strict=True)
        return [(truth[seen], labels[seen]) for truth, labels, seen in tasks]


def _draw_file(
    num_rows: int, seeds: Iterator[list[int]], world: World, config: SyntheticConfig
) -> Iterator[_Drawn]:
    """The row groups of a file."""
    for start in range(0, num_rows, config.row_group_rows):
        size = min(config.row_group_rows, num_rows - start)
        yield _draw_chunk(np.random.default_rng(next(seeds)), size, world, config)


def _draw_chunk(
    rng: np.random.Generator, size: int, world: World, config: SyntheticConfig
) -> _Drawn:
    users, items = world.draw_pairs(rng, size)
    dense = rng.standard_normal((size, config.num_dense), dtype=np.float32)
    rows = {"user": users, "item": items}
    inputs = []
    for name, side, num_embeddings in config.id_features():
        if name in ("user_id", "item_id"):
            inputs.append(pa.array((rows[side] + 1).astype(np.int32)))
        elif side == "context":
            inputs.append(pa.array(rng.integers(1, num_embeddings, size, dtype=np.int32)))
        else:
            inputs.append(pa.array(world.features[name][rows[side]]))
    inputs += [_bag_column(world.bags[name], rows[side]) for name, side in config.bag_features()]
    inputs += [pa.array(np.ascontiguousarray(dense[:, k])) for k in range(config.num_dense)]
    truth = sigmoid(world.logits(users, items, dense))
    labels = (rng.random(truth.shape, dtype=np.float32) < truth).astype(np.int8)
    missing = np.asarray(config.missing_shares, dtype=np.float32)
    observed = rng.random(truth.shape, dtype=np.float32) >= missing[:, None]
    return _Drawn(inputs, truth, labels, observed)


def _bag_column(bag: Bag, rows: NDArray[np.int64]) -> pa.Array:
    lengths = bag.lengths[rows]
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    filled = np.arange(bag.ids.shape[1]) < lengths[:, None]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(bag.ids[rows][filled]))


def _write_conflicts(folder: Path, world: World) -> None:
    user_ids = np.arange(1, len(world.conflict) + 1, dtype=np.int32)
    table = pa.table({"user_id": user_ids, "conflict": world.conflict})
    with open_parquet(folder / TRUTH_FOLDER / "users.parquet", table.schema) as file:
        file.write_table(table)
