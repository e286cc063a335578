"""A run -> a folder that predicts without TorchRec: written aside, checked, then in its place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from stem_torchrec.checkpoint import Choice
from stem_torchrec.config import Config, build_model
from stem_torchrec.data.schema import Feature, Schema
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.recommender import inputs_of as inputs_of_schema
from stem_torchrec.errors import UserError
from stem_torchrec.prepare.encoder.definition import ENCODER_FILE
from stem_torchrec.runs.encoder import ENCODER, carry_encoder, require_identities
from stem_torchrec.runs.folder import installed_versions
from stem_torchrec.runs.records import Record
from stem_torchrec.runs.schema import own_schema, schema_of_run
from stem_torchrec.serving.dense_part import save_dense_part
from stem_torchrec.serving.features import ServedFeature, inputs_of
from stem_torchrec.serving.manifest import MANIFEST, write_manifest
from stem_torchrec.serving.model import ABOUT, DENSE_PART, About, ServedModel
from stem_torchrec.serving.predict import probabilities_of
from stem_torchrec.serving.predictor import CHECK_ROWS, PROBABILITY_OF, Predictor
from stem_torchrec.serving.quality import SHOWN, evaluate_export
from stem_torchrec.serving.run_tables import write_tables
from stem_torchrec.serving.tables import TABLES, Precision, reduce_table
from stem_torchrec.storage.folder_choice import usable
from stem_torchrec.storage.place import remove
from stem_torchrec.storage.publishing import aside_of, publish
from stem_torchrec.training.evaluating import evaluate
from stem_torchrec.training.finished_run import open_run
from stem_torchrec.training.session import has_split

_MEASURED = "test"
_CHECKED_ROWS = 16


@dataclass(frozen=True)
class ExportRequest:
    """What is wanted.

    Attributes:
        out: the folder; of an export that is there only if ``overwrite``.
        tables: precision of the tables.
        name: the model's, for servers.
    """

    out: Path
    tables: Precision
    name: str
    overwrite: bool = False

    @property
    def aside(self) -> Path:
        """Where it is written first."""
        aside = aside_of(self.out)
        assert isinstance(aside, Path)
        return aside

    def require_free(self) -> None:
        """
        Raises:
            UserError: the folder is taken, or cannot be made.
        """
        with usable("--out", self.out):
            shown, is_export = str(self.out), (self.out / MANIFEST).is_file()
            is_empty = self.out.is_dir() and not any(self.out.iterdir())
            if is_export and not self.overwrite:
                raise UserError(
                    f"--out: {shown!r} holds an export; choose another folder, or pass --overwrite"
                )
            if self.out.exists() and not is_export and not is_empty:
                raise UserError(f"--out: {shown!r} is there and is no export; move it away")
            self.out.parent.mkdir(parents=True, exist_ok=True)


class Exported(NamedTuple):
    """What the ranks have handed over, on rank 0.

    Attributes:
        weights: of the dense part.
        record: metrics of the test split; None where the data is not there.
    """

    schema: Schema
    step: int
    weights: Mapping[str, Tensor]
    record: Record | None


def write_from_ranks(
    config: Config, ranks: Ranks, choice: Choice, request: ExportRequest
) -> Exported:
    """Open the run, write its tables aside, evaluate it on the test split. Collective.

    Raises:
        UserError: there is no such checkpoint, or it is damaged; the folder is taken.
    """
    ranks.on_first(request.require_free)
    is_measured = ranks.on_first(lambda: has_split(config.data.path, _MEASURED))
    schema = (
        schema_of_run(config, ranks) if is_measured else ranks.on_first(lambda: own_schema(config))
    )
    session, step = open_run(config, ranks, choice, schema)

    def make() -> None:
        remove(request.aside)
        request.aside.mkdir()

    ranks.on_first(make)
    write_tables(session, request.aside)
    record = evaluate(session, _MEASURED, step) if is_measured else None
    state = session.recommender.model.state_dict()
    weights = {name: value.detach().cpu().clone() for name, value in state.items()}
    return Exported(schema, step, weights, record)


def finish(config: Config, request: ExportRequest, exported: Exported) -> About:
    """Make the rest of the export in this process, check it, and let it appear.

    Raises:
        UserError: torch cannot trace the model; the run's encoder is not that of its data.
    """
    folder, schema = request.aside, exported.schema
    inputs = inputs_of_schema(schema, config.embedding)
    model = build_model(config.model, inputs)
    own = model.state_dict()
    model.load_state_dict({name: exported.weights[name] for name in own})
    widths = inputs.pooled_widths(model.owners)
    save_dense_part(model, widths, len(schema.dense), folder / DENSE_PART)
    for file in (folder / TABLES).iterdir():
        reduce_table(file, request.tables)
    has_encoder = _carry_encoder(config, schema, folder)
    about = About(
        name=request.name,
        tasks=schema.task_names,
        features=tuple(_served(part, inputs.widths.get(part.name, 0)) for part in schema.features),
        owners={owner: tuple(names) for owner, names in model.owners.items()},
        tables=request.tables,
        has_encoder=has_encoder,
        notes={},
    )
    served = ServedModel(folder, about)
    pq.write_table(_checked_rows(served, about), folder / CHECK_ROWS)
    about = _with_notes(about, config, exported, served, folder)
    (folder / ABOUT).write_text(about.text())
    write_manifest(folder)
    Predictor(folder)  # as whoever loads it will
    publish(folder, request.out)
    return about


def _carry_encoder(config: Config, schema: Schema, folder: Path) -> bool:
    """Copy the run's encoder, if it has one, whose ids are those that were trained."""
    source = config.run.dir / ENCODER
    if not (source / ENCODER_FILE).is_file():
        return False
    carry_encoder(source, schema, folder)
    require_identities(folder, schema)
    return True


def _served(feature: Feature, dim: int) -> ServedFeature:
    if feature.kind == "dense":
        return ServedFeature(feature.name, feature.kind)
    assert feature.num_embeddings is not None
    is_mean = feature.kind == "bag" and feature.pooling == "mean"
    return ServedFeature(
        feature.name, feature.kind, feature.table_name, feature.num_embeddings, is_mean, dim
    )


def _checked_rows(model: ServedModel, about: About) -> pa.Table:
    """Rows of random ids with the probabilities that the export gives here."""
    rng = np.random.default_rng(0)

    def column(feature: ServedFeature) -> pa.Array:
        if feature.kind == "dense":
            return pa.array(rng.normal(size=_CHECKED_ROWS), pa.float32())
        if feature.kind == "id":
            return pa.array(rng.integers(0, feature.num_embeddings, _CHECKED_ROWS))
        lengths = rng.integers(0, 5, _CHECKED_ROWS)
        bags = [rng.integers(0, feature.num_embeddings, length).tolist() for length in lengths]
        return pa.array(bags, pa.list_(pa.int64()))

    columns = {feature.name: column(feature) for feature in about.features}
    logits = model.logits(inputs_of(pa.table(columns), about.features)).double().numpy()
    found = zip(about.tasks, probabilities_of(logits).T, strict=True)
    return pa.table(columns | {PROBABILITY_OF + task: pa.array(part) for task, part in found})


def _with_notes(
    about: About, config: Config, exported: Exported, model: ServedModel, folder: Path
) -> About:
    notes: dict[str, Any] = {
        "run": str(config.run.dir),
        "step": exported.step,
        "versions": installed_versions(),
        "bytes": {
            "tables": sum(file.stat().st_size for file in (folder / TABLES).iterdir()),
            "dense": (folder / DENSE_PART).stat().st_size,
        },
    }
    if exported.record is not None:
        found = evaluate_export(model, config, exported.schema, _MEASURED)
        notes["metrics"] = {
            "split": _MEASURED,
            "run": {name: exported.record[name] for name in SHOWN},
            "export": {name: found[name] for name in SHOWN},
        }
    return About(**{**vars(about), "notes": notes})
