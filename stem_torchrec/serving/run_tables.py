"""The tables of a run -> the files of an export; every rank writes the shards that it holds."""

from pathlib import Path

from stem_torchrec.distributed.tables import local_shards
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.serving.safetensors import create_tensors, open_tensors
from stem_torchrec.serving.tables import TABLES, table_file
from stem_torchrec.training.session import Session

_CHUNK_ROWS = 1 << 16


def write_tables(session: Session, folder: Path) -> None:
    """Write every table as fp32, a piece at a time, to a folder that all ranks see. Collective."""

    def create() -> None:
        (folder / TABLES).mkdir()
        widths = feature_widths(session.schema, session.config.embedding)
        for owner, names in session.recommender.model.owners.items():
            for feature in session.schema.sparse:
                file = table_file(folder, owner, feature.table_name)
                if feature.name in names and not file.exists():
                    assert feature.num_embeddings is not None
                    shape = feature.num_embeddings, widths[feature.name]
                    create_tensors(file, {"values": ("F32", shape)})

    session.ranks.on_first(create)
    for shard in local_shards(session.model):
        values = open_tensors(folder / TABLES / f"{shard.table}.safetensors", writable=True)
        rows, columns = shard.values.shape
        place = slice(shard.first_column, shard.first_column + columns)
        for start in range(0, rows, _CHUNK_ROWS):
            piece = shard.values[start : start + _CHUNK_ROWS].float().cpu().numpy()
            first = shard.first_row + start
            values["values"][first : first + len(piece), place] = piece
        values["values"].flush()
    session.ranks.barrier()
