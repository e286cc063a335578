"""One-gate mixture of experts (Ma et al., KDD 2018, section 4.1).

B rows, I inputs, M experts of width H, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.fork import Handle
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.models.model import GATED, Model, numbered_experts, require_shared_experts
from stem_torchrec.nn.towers import Towers
from stem_torchrec.schema import Schema


class Omoe(Model):
    """All tasks read one mixture: experts and gate are shared, towers are not."""

    settings = GATED

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        require_shared_experts(config)
        self.num_tasks = len(schema.tasks)
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        self.mixture = GatedExperts(Inputs.of(schema, dim), config)
        self.towers = Towers(self.num_tasks, config.expert_widths[-1], config)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.mixture.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        (outputs,) = self.fork(self.mixture, shared, self.num_tasks).tasks.outputs.unbind(dim=1)
        return self.towers(outputs.expand(self.num_tasks, -1, -1))


class GatedExperts(nn.Module):
    """M experts under one gate: (B, I) -> (1, B, H)."""

    def __init__(self, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__()
        self.experts = experts(config.num_shared_experts, inputs, config)
        self.gate = Gates(["all"], numbered_experts(config), inputs.width, config)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.experts(x).unsqueeze(0)
        return mix(self.gate(x), Handle(x, outputs), outputs[:, :0], "all")
