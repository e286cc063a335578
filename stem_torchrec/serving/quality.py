"""How good an export is: the metrics of a split, of the very rows that its run is evaluated on."""

from stem_torchrec.config import Config
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.data.schema import Schema
from stem_torchrec.nn.losses import labelled
from stem_torchrec.runs.records import Record
from stem_torchrec.serving.features import Ids, Inputs
from stem_torchrec.serving.model import ServedModel
from stem_torchrec.training.evaluation import Predictions, evaluation

SHOWN = ("auc", "ne")
"""Metrics that ``export.json`` holds."""


def evaluate_export(model: ServedModel, config: Config, schema: Schema, split: str) -> Record:
    """The metrics of every row of a split, as ``evaluation`` gives them; in this process.

    Raises:
        UserError: the split is missing or damaged.
    """
    reader = ParquetReader(
        config.data.path,
        split,
        schema,
        batch_size=config.eval.batch_size or config.train.batch_rows,
        days=config.data.days_of(split),
        verify_checksums=config.data.verify_checksums,
    )
    bags = {feature.name for feature in schema.sparse if feature.kind == "bag"}
    predictions = Predictions(len(schema.tasks), has_groups=schema.group is not None)
    for batch in reader.epoch(0):
        logits = model.logits(_inputs(batch, bags))
        predictions.add(logits, labelled(batch.labels, batch.weights), batch.groups)
    return evaluation(schema.task_names, predictions.joined(lambda rows: rows))


def _inputs(batch: Batch, bags: set[str]) -> Inputs:
    columns = batch.sparse.to_dict()
    return Inputs(
        {
            name: Ids(part.values(), part.lengths().long() if name in bags else None)
            for name, part in columns.items()
        },
        batch.dense,
    )
