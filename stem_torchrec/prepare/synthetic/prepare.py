"""A seeded multi-task set with known truth: users whose tasks agree, and users whose tasks do not.

Shapes: T tasks, B rows of a chunk, N dense features.
"""

from pathlib import Path
from typing import Any

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
from stem_torchrec.prepare.synthetic.world import Bag, World, build_world, sigmoid

__all__ = ["TRUTH_FOLDER", "SyntheticConfig", "prepare_synthetic"]

TRUTH_FOLDER = "truth"


def prepare_synthetic(
    config: SyntheticConfig, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Generate a prepared folder with the truth beside it; returns its statistics.

    Users and items share one latent preference and have one per task. A user in conflict wants
    from every second task the opposite of what it wants from the first. ``out/truth`` holds
    ``{split}.parquet`` (columns ``p_TASK``: float32 probability of a positive label, rows in the
    order of the split) and ``users.parquet`` (``user_id``, ``conflict``). The statistics carry
    ``bayes_auc``: per task, the test AUC of these probabilities, which no model can expect to
    beat.

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
        for split in SPLITS:
            scored = _write_split(folder, split, schema, world, config)
        _write_conflicts(folder, world)
        bayes_auc = {
            name: auc(scores, labels, np.ones(len(labels)))
            for name, (scores, labels) in zip(schema.task_names, scored, strict=True)
        }
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


def _write_split(
    folder: Path, split: str, schema: Schema, world: World, config: SyntheticConfig
) -> list[tuple[NDArray[np.float32], NDArray[np.int8]]]:
    """Write one split and its truth; returns true probability and label of the observed rows per
    task for the test split, nothing for the others."""
    num_rows = int(getattr(config, f"{split}_rows"))
    truth_columns = pa.schema([(f"p_{name}", pa.float32()) for name in schema.task_names])
    columns = arrow_schema(schema)
    kept: list[list[tuple[NDArray[np.float32], NDArray[np.int8]]]] = [[] for _ in config.names]
    with (
        open_parquet(folder / split / "part-0.parquet", columns) as rows_file,
        open_parquet(folder / TRUTH_FOLDER / f"{split}.parquet", truth_columns) as truth_file,
    ):
        for chunk, start in enumerate(range(0, num_rows, config.row_group_rows)):
            size = min(config.row_group_rows, num_rows - start)
            rng = np.random.default_rng([config.seed, 4, SPLITS.index(split), chunk])
            inputs, truth, labels, observed = _draw_chunk(rng, size, world, config)
            outcomes = [pa.array(y, mask=~seen) for y, seen in zip(labels, observed, strict=True)]
            rows_file.write_table(pa.table([*inputs, *outcomes], schema=columns), size)
            truth_file.write_table(pa.table(list(truth), schema=truth_columns), size)
            if split == "test":
                for task, seen in enumerate(observed):
                    kept[task].append((truth[task][seen], labels[task][seen]))
    return [
        (np.concatenate([p for p, _ in parts]), np.concatenate([y for _, y in parts]))
        for parts in kept
        if parts
    ]


def _draw_chunk(
    rng: np.random.Generator, size: int, world: World, config: SyntheticConfig
) -> tuple[list[pa.Array], NDArray[np.float32], NDArray[np.int8], NDArray[np.bool_]]:
    """Input columns, then (T, B) true probabilities, labels, and which labels are observed."""
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
    missing = np.asarray(config.missing_label_share or [0.0] * len(truth), dtype=np.float32)
    observed = rng.random(truth.shape, dtype=np.float32) >= missing[:, None]
    return inputs, truth, labels, observed


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
