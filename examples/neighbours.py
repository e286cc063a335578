"""Items near an item, by the vectors of a run, with faiss (the extra ``neighbours``).

stem-torchrec export --run RUN --embeddings item_id --owner shared --out VECTORS
python examples/neighbours.py VECTORS/shared__item_id.parquet VALUE
"""

import sys
from pathlib import Path

import faiss
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq


def neighbours(file: Path, value: str, count: int = 5) -> list[tuple[str, float]]:
    """The values whose vectors have the largest cosine with that of a value."""
    rows = pq.read_table(file)
    rows = rows.filter(pc.is_valid(rows["value"])) if rows["value"].null_count < len(rows) else rows
    names = [str(v) for v in rows["value" if rows["value"].null_count == 0 else "id"].to_pylist()]
    if value not in names:
        raise SystemExit(f"{value!r} is not in {file}")
    vectors = np.stack(rows["vector"].to_numpy()).astype(np.float32)
    faiss.normalize_L2(vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    place = names.index(value)
    cosines, places = index.search(vectors[place : place + 1], count + 1)
    found = zip(places[0].tolist(), cosines[0].tolist(), strict=True)
    return [(names[other], cosine) for other, cosine in found if other != place][:count]


if __name__ == "__main__":
    for name, cosine in neighbours(Path(sys.argv[1]), sys.argv[2]):
        print(f"{cosine:.3f}  {name}")
