"""STEM-Net in plain PyTorch: what one writes without TorchRec, as the baseline of a benchmark.

One wide dense table per feature holds the columns of all owners side by side; its gradient is
dense, every row gets an Adam step and an L2 term in every step.

B rows, F features, D embedding dimension, T tasks, K = T + 1 experts of width H (one shared, one
per task).
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


def perceptron(width_in: int, hidden: Sequence[int], width_out: int | None = None) -> nn.Sequential:
    """Linear layers with ReLU after each hidden one; a linear output layer if there is one."""
    layers: list[nn.Module] = []
    for left, right in pairwise([width_in, *hidden]):
        layers += [nn.Linear(left, right), nn.ReLU()]
    if width_out is not None:
        layers.append(nn.Linear(hidden[-1], width_out))
    return nn.Sequential(*layers)


class PlainStemNet(nn.Module):
    """One shared expert and one per task, AFTB gates that read the task's and the shared features.

    Args:
        vocabularies: rows of each feature's table.
        hidden_widths: hidden layers of gates and towers.
    """

    def __init__(
        self,
        vocabularies: Sequence[int],
        num_tasks: int,
        dim: int,
        expert_widths: Sequence[int],
        hidden_widths: Sequence[int],
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        self.dim = dim
        num_owners = num_tasks + 1
        self.tables = nn.ModuleList(nn.Embedding(rows, num_owners * dim) for rows in vocabularies)
        for table in self.tables:
            nn.init.normal_(table.weight, std=init_std)
        width = len(vocabularies) * dim
        self.experts = nn.ModuleList(perceptron(width, expert_widths) for _ in range(num_owners))
        self.gates = nn.ModuleList(
            perceptron(2 * width, hidden_widths, num_owners) for _ in range(num_tasks)
        )
        self.towers = nn.ModuleList(
            perceptron(expert_widths[-1], hidden_widths, 1) for _ in range(num_tasks)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (F, B) -> logits (B, T)."""
        looked_up = torch.stack(
            [table(column) for table, column in zip(self.tables, ids, strict=True)], dim=1
        )
        shared, *own = (part.flatten(1) for part in looked_up.split(self.dim, dim=2))
        streams = [shared, *own]
        outputs = [expert(x) for expert, x in zip(self.experts, streams, strict=True)]
        logits = []
        for task, (gate, tower) in enumerate(zip(self.gates, self.towers, strict=True), start=1):
            readable = [h if k in (0, task) else h.detach() for k, h in enumerate(outputs)]
            weights = gate(torch.cat([streams[task], shared], dim=1)).softmax(dim=1)
            mixed = (weights.unsqueeze(2) * torch.stack(readable, dim=1)).sum(dim=1)
            logits.append(tower(mixed))
        return torch.cat(logits, dim=1)

    def loss(self, ids: Tensor, labels: Tensor, l2: float) -> Tensor:
        """Sum over tasks of the mean cross-entropy, and l2 / 2 times all tables' squared norm."""
        per_label = binary_cross_entropy_with_logits(self(ids), labels, reduction="none")
        penalty = torch.stack([table.weight.square().sum() for table in self.tables]).sum()
        return per_label.mean(dim=0).sum() + l2 / 2 * penalty


class PlainTrainer:
    """Adam on everything, tables included.

    Args:
        batches: ids (F, B) int64 and labels (B, T) float32, in memory.
    """

    def __init__(
        self, model: PlainStemNet, batches: Iterator[tuple[Tensor, Tensor]], l2: float
    ) -> None:
        self._model, self._batches, self._l2 = model, batches, l2
        self._optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(self) -> None:
        ids, labels = next(self._batches)
        self._optimizer.zero_grad()
        self._model.loss(ids, labels, self._l2).backward()
        self._optimizer.step()
