"""A run's embeddings as Parquet, for retrieval: raw value, vector, count.

D embedding dimension.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stem_torchrec.data.schema import Feature
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER
from stem_torchrec.errors import UserError, did_you_mean
from stem_torchrec.nn.owners import Owners
from stem_torchrec.runs.encoder import ENCODER, require_identities
from stem_torchrec.runs.schema import own_schema
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.training.run import Run

ALL = "all"
_CHUNK_ROWS = 1 << 16


def write_embeddings(run: Run, features: Sequence[str], owner: str, out: Path) -> list[Path]:
    """Write ``out/OWNER__FEATURE.parquet``, with ``id``, ``value``, ``count``, ``vector``.

    Rows are in the order of the ids. ``value`` (as the vocabulary has it) and ``count`` (rows of
    train) are null for id 0, and for ids that no vocabulary numbers.

    Args:
        owner: ``shared``, a task, or ``all`` for every owner with a table of the feature.

    Raises:
        UserError: an owner or feature is not the run's, or the owner has no table of it; the
            folder is taken.
    """
    with usable("--out", out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out: {str(out)!r} is there and not empty; choose another folder")
    schema = own_schema(run.config)
    encoder = run.config.run.dir / ENCODER
    if not isinstance(encoder, Path):
        raise UserError(f"--run: {encoder.parent} lies in a store; copy the run to a disk")
    if encoder.is_dir():
        require_identities(encoder, schema)
    by_name = {feature.name: feature for feature in schema.sparse}
    for name in features:
        if name not in by_name:
            raise UserError(
                f"--embeddings: {name!r} is not an id or bag feature of the run; allowed: "
                f"{', '.join(by_name)}{did_you_mean(name, by_name)}"
            )
    tables = run.tables(*features)
    there = {of: [*found] for of, found in tables.items()}
    wanted = [(of, name) for name in features for of in _owners(owner, there, name)]
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for of, name in wanted:
        feature, file = by_name[name], out / f"{of}__{name}.parquet"
        vocabulary = encoder / VOCABULARY_FOLDER / f"{feature.table_name}.parquet"
        _write(file, feature, tables[of][name], vocabulary)
        files.append(file)
    return files


def _owners(wanted: str, there: Owners, feature: str) -> list[str]:
    """The owners that are wanted and have a table of the feature."""
    having = [owner for owner, names in there.items() if feature in names]
    if wanted == ALL:
        return having
    if wanted not in having:
        hint = did_you_mean(wanted, having)
        raise UserError(
            f"--owner: {wanted!r} has no table of {feature!r}; allowed: "
            f"{', '.join([*having, ALL])}{hint}"
        )
    return [wanted]


def _write(file: Path, feature: Feature, table: NDArray[np.float32], vocabulary: Path) -> None:
    known = feature.encoding == "vocabulary" and vocabulary.is_file()
    values = pq.read_table(vocabulary, columns=["value", "count"]) if known else None
    aside = file.with_name(f".{file.name}.partial")
    writer = None
    for rows in _parts(table, values):
        writer = writer or pq.ParquetWriter(aside, rows.schema, write_page_checksum=True)
        writer.write_table(rows)
    assert writer is not None
    writer.close()
    aside.replace(file)


def _parts(table: NDArray[np.float32], values: pa.Table | None) -> Iterator[pa.Table]:
    num_rows, dim = table.shape
    for start in range(0, num_rows, _CHUNK_ROWS):
        vectors = np.ascontiguousarray(table[start : start + _CHUNK_ROWS])
        ids = np.arange(start, start + len(vectors))
        columns: dict[str, pa.Array] = {"id": pa.array(ids)}
        for name in ("value", "count"):
            if values is None:
                columns[name] = pa.nulls(len(ids), pa.string() if name == "value" else pa.int64())
                continue
            # Ids count from 1 in a vocabulary: a place outside of it is null.
            places = pa.array(ids - 1, mask=(ids == 0) | (ids > values.num_rows))
            columns[name] = pa.concat_arrays(values[name].take(places).chunks)
        flat = pa.array(vectors.reshape(-1))
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, dim)
        yield pa.table(columns)
