"""A recommender: tables below, a model above.

B rows of the local batch, T tasks.
"""

from torch import Tensor, nn

from stem_torchrec.config import Config, build_model
from stem_torchrec.data.batch import Batch
from stem_torchrec.data.schema import Schema
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.nn import Inputs


class Recommender(nn.Module):
    """Tables and model; forward gives the logits (B, T).

    Its forward only wires modules: TorchRec traces it to find the tables' input.

    Args:
        world_size: W; a rank's gradient is W times its share of the global batch's.
    """

    def __init__(self, config: Config, schema: Schema, world_size: int = 1) -> None:
        super().__init__()
        model = build_model(config.model, inputs_of(schema, config.embedding.dim))
        self.embeddings = OwnerEmbeddings(schema, model.owners, config.embedding, world_size)
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return self.model(self.embeddings(batch.sparse), batch.dense)


def inputs_of(schema: Schema, dim: int) -> Inputs:
    """What a model is told of the data: its features and tasks, and the embedding dimension."""
    sides = {feature.name: feature.side for feature in schema.sparse}
    return Inputs(sides, dim, schema.task_names, len(schema.dense))
