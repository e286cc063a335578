"""Multi-embedding MMoE (compared in STEM, AAAI 2024): one set of tables per expert.

B rows, F features, D embedding dimension, N dense features, M experts of width H, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import GATED, Model, numbered_experts, require_shared_experts
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class MeMmoe(Model):
    """MMoE whose expert k reads its own tables ``expert_k__feature``; gates read all tables."""

    settings = GATED

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        require_shared_experts(config)
        self.num_tasks = len(schema.tasks)
        self.shared_owners = numbered_experts(config)
        self.owners = dict.fromkeys(self.shared_owners, tuple(f.name for f in schema.sparse))
        self.experts = ExpertsWithTables(Inputs.of(schema, dim), config)
        width = self.experts.width_in
        self.gates = Gates(schema.task_names, self.shared_owners, width, config)
        self.towers = Towers(self.num_tasks, config.expert_widths[-1], config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([*(pooled[owner] for owner in self.shared_owners), dense], dim=1)
        read = self.fork(self.experts, shared, self.num_tasks).tasks
        weights = self.gates(read.features.expand(self.num_tasks, -1, -1))
        return self.towers(mix(weights, read, read.outputs[:1, :0], "all"))


class ExpertsWithTables(nn.Module):
    """Expert k reads the k-th of M sets of pooled features: (B, M * F * D + N) -> (M, B, H)."""

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__()
        self.num, self.inputs = config.num_shared_experts, inputs
        self.width_in = self.num * inputs.pooled_width + inputs.num_dense
        self.experts = experts(self.num, inputs, config)

    def forward(self, x: Tensor) -> Tensor:
        *pooled, dense = x.split([self.inputs.pooled_width] * self.num + [self.inputs.num_dense], 1)
        return self.experts(torch.stack([torch.cat([part, dense], dim=1) for part in pooled]))
