"""Entire-space multi-task model (Ma et al., SIGIR 2018): p(second) = p(first) p(second | first).

B rows, I inputs, T tasks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.models.model import BOUNDARIES, Model
from stem_torchrec.nn.models.task_order import ordered_pair
from stem_torchrec.schema import Schema


class Esmm(Model):
    """Shared tables and a network per task; the second task of the pair is a product.

    The first task's network is reached by both losses and lies below the fork. Tasks outside the
    pair have a network of their own.
    """

    settings = frozenset({"name", "expert_widths", "tower_widths", "dropout", "task_order"})
    boundaries = tuple(name for name in BOUNDARIES if name != "experts")

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.num_tasks = len(schema.tasks)
        self.first, self.second = ordered_pair(config, schema)
        self.others = [task for task in range(self.num_tasks) if task != self.first]
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        widths = (*config.expert_widths, *config.tower_widths)
        size = Inputs.of(schema, dim).width
        self.first_network = BatchedMlp(1, size, widths, 1, config.dropout)
        self.networks = BatchedMlp(len(self.others), size, widths, 1, config.dropout)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.first_network.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        read = self.fork(self.first_network, shared, self.num_tasks).tasks
        features = read.features.expand(self.num_tasks, -1, -1)
        first = read.outputs.expand(self.num_tasks, -1, -1, -1)[:, 0, :, 0]
        logits = dict(zip(self.others, self.networks(features[self.others])[..., 0], strict=True))
        logits[self.second] = product_logit(first[self.second], logits[self.second])
        logits[self.first] = first[self.first]
        return torch.stack([logits[task] for task in range(self.num_tasks)], dim=1)


def product_logit(one: Tensor, other: Tensor) -> Tensor:
    """The logit of sigmoid(one) * sigmoid(other), finite for finite logits."""
    product = logsigmoid(one) + logsigmoid(other)
    # 1 - ab = (1 - a) + a (1 - b)
    complement = torch.logaddexp(logsigmoid(-one), logsigmoid(one) + logsigmoid(-other))
    return product - complement
