"""The encoder of a run: what turns raw values into the ids that its tables know."""

import shutil
from pathlib import Path

from stem_torchrec.data.schema import Schema
from stem_torchrec.data.vocabulary_identity import VOCABULARY_FOLDER, identity_of, vocabulary_file
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE, encoder_from
from stem_torchrec.storage.place import Place

ENCODER = "encoder"
"""The run's folder of it."""


def carry_encoder(data: Place, schema: Schema, folder: Place) -> None:
    """Copy a prepared folder's encoder, with the vocabularies of the features, into a folder.

    Nothing is copied of a folder without one: its ids stand for themselves.
    """
    if not (data / ENCODER_FILE).is_file():
        return
    encoder = data / ENCODER_FILE
    counts = encoder_from(encoder.read_bytes(), str(encoder)).counted
    files = {f"{feature.name}.parquet" for feature in schema.dense if feature.name in counts}
    files |= {
        vocabulary_file(data, feature).name
        for feature in schema.sparse
        if feature.encoding == "vocabulary"
    }
    (folder / VOCABULARY_FOLDER).mkdir(parents=True, exist_ok=True)
    for name in sorted(files):
        _copy(data / VOCABULARY_FOLDER / name, folder / VOCABULARY_FOLDER / name)
    _copy(data / ENCODER_FILE, folder / ENCODER_FILE)


def require_identities(folder: Path, schema: Schema) -> None:
    """Refuse vocabularies in ``folder/vocab`` whose ids mean something else than a schema's.

    Raises:
        UserError: names the first.
    """
    for feature in schema.sparse:
        if feature.vocabulary is None:
            continue
        file = vocabulary_file(folder, feature)
        if identity_of(file) != feature.vocabulary:
            raise UserError(f"{file}: is not the vocabulary that {feature.name!r} was trained with")


def _copy(source: Place, target: Place) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 22)
