"""The encoder of a run, at work."""

from pathlib import Path

from stem_torchrec.data.schema import Schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE
from stem_torchrec.prepare.encoder.encode import RawEncoder, load_raw_encoder
from stem_torchrec.runs.encoder import ENCODER, require_identities
from stem_torchrec.storage.place import Place


def encoder_of_run(run_dir: Place, schema: Schema) -> RawEncoder:
    """A run's encoder, for its features.

    Raises:
        UserError: the run has none, lies in a store, or a vocabulary is not the one that the run
            was trained with.
    """
    folder = run_dir / ENCODER
    if not isinstance(folder, Path):
        raise UserError(f"{folder}: lies in a store; copy the run to a disk to encode raw values")
    if not (folder / ENCODER_FILE).is_file():
        raise UserError(
            f"{run_dir}: has no encoder, so raw values cannot become ids: its data was prepared "
            "without one (generated data, another tool's, or an earlier version's); give prepared "
            "data"
        )
    require_identities(folder, schema)
    return load_raw_encoder(folder, [feature.name for feature in schema.features])
