"""A recommender: tables below, a model above.

B rows of the local batch, T tasks.
"""

from torch import Tensor, nn

from stem_torchrec.config import Config, EmbeddingConfig, build_model
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.widths import feature_widths
from stem_torchrec.nn import Inputs


class Recommender(nn.Module):
    """Tables and model; forward gives the logits (B, T).

    Its forward only wires modules: TorchRec traces it to find the tables' input.

    Args:
        world_size: W; a rank's gradient is W times its share of the global batch's.
    """

    def __init__(self, config: Config, schema: Schema, world_size: int = 1) -> None:
        super().__init__()
        model = build_model(config.model, inputs_of(schema, config.embedding))
        self.embeddings = OwnerEmbeddings(schema, model.owners, config.embedding, world_size)
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(self.embeddings(batch.sparse), batch.dense)


def inputs_of(schema: Schema, config: EmbeddingConfig) -> Inputs:
    """What a model is told of the data: its features and tasks, and the embedding dimensions.

    Raises:
        UserError: as ``feature_widths`` does.
    """
    sides = {feature.name: feature.side for feature in schema.sparse}
    widths = feature_widths(schema, config)
    return Inputs(sides, config.dim, schema.task_names, len(schema.dense), widths)
