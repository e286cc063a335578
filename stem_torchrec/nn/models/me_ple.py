"""Multi-embedding PLE (compared in STEM, AAAI 2024): one set of tables per group of experts.

B rows, I inputs, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.extraction import ExtractionStack
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import GATED, Model
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class MePle(Model):
    """PLE whose shared experts read shared tables and whose task experts read the task's own."""

    settings = GATED | {"num_task_experts", "layers"}

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tasks = schema.task_names
        self.owners = dict.fromkeys((SHARED, *self.tasks), tuple(f.name for f in schema.sparse))
        inputs = Inputs.of(schema, dim)
        self.stack = ExtractionStack(config, self.tasks, inputs, "own", "task")
        self.towers = Towers(len(schema.tasks), self.stack.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        own = torch.stack([torch.cat([pooled[task], dense], dim=1) for task in self.tasks])
        return self.towers(self.stack(self.fork, shared, lambda _: own))
