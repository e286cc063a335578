"""Progressive layered extraction (Tang et al., RecSys 2020) on shared tables.

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


class Ple(Model):
    """Shared and task experts on one set of tables; a task reads and trains its own and the shared.

    In a stacked block the shared stream reads the experts of all tasks, as in the paper.
    """

    settings = GATED | {"num_task_experts", "layers"}

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        self.stack = ExtractionStack(
            config, schema.task_names, Inputs.of(schema, dim), "own", "task"
        )
        self.towers = Towers(len(schema.tasks), self.stack.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        return self.towers(self.stack(self.fork, shared, lambda features: features))
