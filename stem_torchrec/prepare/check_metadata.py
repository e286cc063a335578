"""Verify what stands beside the splits of a prepared folder: vocabularies and ``stats.json``."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from numpy.typing import NDArray

from stem_torchrec.data.dense_scale import STATS_FILE
from stem_torchrec.data.parquet_file import open_parquet_file, unreadable
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER, identity_of
from stem_torchrec.errors import StoreUnreachable, UserError
from stem_torchrec.prepare.engine.split_counts import SplitCounts
from stem_torchrec.prepare.tables.earlier_days import DAYS_FILE, read_days, refuse_changed_counts
from stem_torchrec.storage.place import Place

_BATCH_ROWS = 65_536
_SAME_RATIO = 1e-9


def check_vocabularies(folder: Place, schema: Schema) -> list[str]:
    """Faults of the vocabularies that are there."""
    faults = []
    if (folder / VOCABULARY_FOLDER).is_dir():
        for feature in schema.sparse:
            file = folder / VOCABULARY_FOLDER / f"{feature.name}.parquet"
            if file.is_file():
                try:
                    _check_vocabulary(file, feature)
                except StoreUnreachable:
                    raise
                except UserError as error:
                    faults.append(str(error))
    return faults


def _check_vocabulary(file: Place, feature: Feature) -> None:
    rows = feature.num_embeddings
    assert rows is not None
    seen = np.zeros(rows, np.bool_)
    for ids in _vocabulary_ids(file):
        outside = ids[(ids < 1) | (ids >= rows)]
        if len(outside):
            raise UserError(
                f"{file}: id {outside[0]}; allowed: 1 to {rows - 1}, as feature "
                f"{feature.name!r} has num_embeddings {rows}"
            )
        distinct, counts = np.unique(ids, return_counts=True)
        if (twice := distinct[(counts > 1) | seen[distinct]]).size:
            raise UserError(f"{file}: id {twice[0]} stands for several values")
        seen[ids] = True
    entries = int(seen.sum())
    if feature.encoding == "vocabulary" and entries != rows - 1:
        raise UserError(
            f"{file}: {entries} entries, but feature {feature.name!r} has num_embeddings {rows}: "
            f"{rows - 1} and the default id 0"
        )
    if feature.vocabulary is not None and identity_of(file) != feature.vocabulary:
        raise UserError(
            f"{file}: its values are not those whose hash feature {feature.name!r} has in "
            "schema.json; training goes by the hash"
        )


def _vocabulary_ids(file: Place) -> Iterator[NDArray[np.integer]]:
    try:
        with open_parquet_file(file, verify=True) as opened:
            found = opened.schema_arrow
            if not {"value", "id"} <= set(found.names):
                has = ", ".join(found.names)
                raise UserError(f"{file}: columns value and id are needed; it has {has}")
            id_type = found.field("id").type
            if not types.is_integer(id_type):
                raise UserError(f"{file}: column 'id' has type {id_type}; allowed: any integer")
            for batch in opened.iter_batches(_BATCH_ROWS, columns=["id"]):
                if batch.column(0).null_count:
                    raise UserError(f"{file}: column 'id' has a null")
                yield batch.column(0).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file, error) from None


def check_days(folder: Place) -> list[str]:
    """Faults of what the next day of a folder by days is counted on."""
    if not (folder / DAYS_FILE).is_file():
        return []
    try:
        refuse_changed_counts(folder, read_days(folder))
    except StoreUnreachable:
        raise
    except UserError as error:
        return [str(error)]
    return []


def check_stats(folder: Place, schema: Schema, splits: Sequence[SplitCounts]) -> list[str]:
    """Faults of ``stats.json``, if it is there, against what was counted."""
    file = folder / STATS_FILE
    if not file.is_file():
        return []
    try:
        stats = json.loads(file.read_text())
    except ValueError as error:
        return [f"{file}: not valid JSON ({error})"]
    if not isinstance(stats, dict):
        return [f"{file}: expected names and values, found {stats!r}"]
    found: dict[str, Any] = {
        "fields": len(schema.features),
        "tasks": list(schema.task_names),
        "samples": {split.name: split.rows for split in splits},
    }
    sound = [split for split in splits if split.is_sound]
    for split in sound:
        labels = split.labels
        observed = {task: observed for task, (observed, _) in labels.items()}
        ratios = {task: split.positive_ratio(task) for task in labels}
        found.setdefault("observed_by_split", {})[split.name] = observed
        found.setdefault("positive_ratio_by_split", {})[split.name] = ratios
    return [
        f"{file}: {what}"
        for key, counted in found.items()
        if key in stats
        for what in _differences(key, stats[key], counted)
    ]


def _differences(name: str, stated: Any, counted: Any) -> list[str]:
    if isinstance(counted, Mapping) and isinstance(stated, Mapping):
        missing = [key for key in stated if key not in counted and name == "samples"]
        return [f"{name}.{key} is {stated[key]}, but there is no such split" for key in missing] + [
            what
            for key in counted
            for what in _differences(f"{name}.{key}", stated.get(key), counted[key])
        ]
    if isinstance(counted, float) and isinstance(stated, float):
        same = abs(counted - stated) <= _SAME_RATIO
    else:
        same = counted == stated
    return [] if same else [f"{name} is {stated}, but the files have {counted}"]
