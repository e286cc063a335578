"""A network per task with tables of its own: the reference for what sharing brings.

B rows, I inputs, T tasks, H width of the last expert layer.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import NETWORK, Model
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class SingleTask(Model):
    """T independent networks, each an expert and a tower, trained side by side."""

    settings = NETWORK
    shared_owners = ()
    boundaries = ()

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tasks = schema.task_names
        names = tuple(f.name for f in schema.sparse)
        self.owners = dict.fromkeys(self.tasks, names)
        self.experts = experts(len(self.tasks), Inputs.of(schema, dim), config)
        self.towers = Towers(len(self.tasks), self.experts.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        inputs = [torch.cat([pooled[task], dense], dim=1) for task in self.tasks]
        return self.towers(self.experts(torch.stack(inputs)))
