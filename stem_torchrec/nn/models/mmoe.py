"""Multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2).

B rows, I inputs, M experts of width H, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import GATED, Model, numbered_experts, require_shared_experts
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class Mmoe(Model):
    """Shared experts; every task has its own gate and tower."""

    settings = GATED

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        require_shared_experts(config)
        self.num_tasks = len(schema.tasks)
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        inputs = Inputs.of(schema, dim)
        self.experts = experts(config.num_shared_experts, inputs, config)
        self.gates = Gates(schema.task_names, numbered_experts(config), inputs.width, config)
        self.towers = Towers(self.num_tasks, self.experts.width_out, config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        read = self.fork(self.experts, shared, self.num_tasks).tasks
        weights = self.gates(read.features.expand(self.num_tasks, -1, -1))
        return self.towers(mix(weights, read, read.outputs[:1, :0], "all"))
