"""Shared-bottom (Caruana, 1997): one network for all tasks, then a tower each.

B rows, I inputs, T tasks, H width of the bottom.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import NETWORK, Model
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class SharedBottom(Model):
    """One expert that every tower reads as it is."""

    settings = NETWORK

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.num_tasks = len(schema.tasks)
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        self.bottom = experts(1, Inputs.of(schema, dim), config)
        self.towers = Towers(self.num_tasks, self.bottom.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.bottom.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        (outputs,) = self.fork(self.bottom, shared, self.num_tasks).tasks.outputs.unbind(dim=1)
        return self.towers(outputs.expand(self.num_tasks, -1, -1))
