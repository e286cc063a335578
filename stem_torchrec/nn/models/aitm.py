"""Adaptive information transfer multi-task model (Xi et al., KDD 2021).

B rows, I inputs, T tasks in order, H width of a tower.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.nn.calibrator import Calibrator
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.models.model import BOUNDARIES, Model
from stem_torchrec.nn.models.task_order import full_order
from stem_torchrec.schema import Schema


class Aitm(Model):
    """Shared tables; each task's tower takes over what the one before it has learnt.

    All towers but the last are reached by later losses too and lie below the fork.
    """

    settings = frozenset(
        {"name", "expert_widths", "tower_widths", "dropout", "task_order", "calibrator_weight"}
    )
    boundaries = tuple(name for name in BOUNDARIES if name != "experts")

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.order = full_order(config, schema)
        self.num_tasks = len(self.order)
        self.owners = {SHARED: tuple(f.name for f in schema.sparse)}
        widths = (*config.expert_widths, *config.tower_widths)
        width = Inputs.of(schema, dim).width
        self.chain = Chain(self.num_tasks - 1, width, widths, config.dropout)
        self.last_tower = BatchedMlp(1, width, widths, dropout=config.dropout)
        self.last_transfer = Transfer(widths[-1])
        self.heads = BatchedMlp(self.num_tasks, widths[-1], (), 1)
        self.penalty = Calibrator(self.order, config.calibrator_weight)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.chain.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        read = self.fork(self.chain, shared, self.num_tasks).tasks
        outputs = [of.unbind() for of in read.outputs.expand(self.num_tasks, -1, -1, -1).unbind()]
        *earlier, last = self.order
        own = self.last_tower(read.features.expand(self.num_tasks, -1, -1)[last])[0]
        states = [outputs[task][place] for place, task in enumerate(earlier)]
        states.append(self.last_transfer(outputs[last][-1], own))
        logits = self.heads(torch.stack(states)).squeeze(-1)
        return logits[[self.order.index(task) for task in range(self.num_tasks)]].t()


class Chain(nn.Module):
    """K towers, each but the first reading the state before it: (B, I) -> (K, B, H)."""

    def __init__(self, num: int, width: int, widths: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.towers = BatchedMlp(num, width, widths, dropout=dropout)
        self.transfers = nn.ModuleList(Transfer(widths[-1]) for _ in range(num - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.towers(x).unbind()
        states = [first]
        for transfer, own in zip(self.transfers, others, strict=True):
            states.append(transfer(states[-1], own))
        return torch.stack(states)


class Transfer(nn.Module):
    """Attention over the transferred state and the task's own (equations 4 to 7)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transferred = nn.Linear(width, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, previous: Tensor, own: Tensor) -> Tensor:
        """(B, H) twice -> (B, H)."""
        both = torch.stack([self.transferred(previous).relu(), own], dim=1)
        scores = (self.query(both) * self.key(both)).sum(dim=2) / own.shape[1] ** 0.5
        return (scores.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(dim=1)
