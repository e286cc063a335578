"""STEM-Net (Su et al., AAAI 2024): shared and task-specific tables, AFTB gates.

B rows, F features, D embedding dimension, N dense features, T tasks, M_s shared experts, M_t
experts per task, H expert width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED
from stem_torchrec.errors import UserError
from stem_torchrec.layers.fork import Fork, Forked, Handle, PlainFork, plain
from stem_torchrec.layers.gates import Reach, mix
from stem_torchrec.layers.mlp import BatchedMlp
from stem_torchrec.schema import Schema


class StemNet(nn.Module):
    """Experts per owner, one gate and one tower per task.

    A task's loss reaches the shared tables and experts and its own, never another task's
    (``layers`` = 1; in a stacked block the shared stream reads all experts, as in the paper).

    Attributes:
        fork: parts the first block's shared experts and their input into tasks.
    """

    unspecific_columns: Tensor

    def __init__(self, config: ModelConfig, schema: Schema, dim: int) -> None:
        super().__init__()
        self.tasks = schema.task_names
        names = tuple(f.name for f in schema.sparse)
        specific = task_specific_features(config, schema)
        self.owners = {SHARED: names} | {task: specific for task in self.tasks if specific}
        rest = [i for i, name in enumerate(names) if name not in specific]
        columns = (torch.tensor(rest, dtype=torch.long)[:, None] * dim + torch.arange(dim)).ravel()
        self.register_buffer("unspecific_columns", columns, persistent=False)

        width = len(names) * dim + len(schema.dense)
        self.blocks = nn.ModuleList()
        for layer in range(config.layers):
            last = layer == config.layers - 1
            self.blocks.append(AftbBlock(config, len(self.tasks), width, shared_gate=not last))
            width = config.expert_widths[-1]
        self.fork: Fork = PlainFork()
        self.towers = BatchedMlp(len(self.tasks), width, config.tower_widths, 1, config.dropout)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Dense weights below the fork, which every task's loss reaches."""
        first = self.blocks[0]
        assert isinstance(first, AftbBlock)
        return first.shared_experts.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Pooled features by owner and (B, N) dense features -> (B, T) logits."""
        shared = torch.cat([pooled[SHARED], dense], dim=1)
        first, *stacked = self.blocks
        assert isinstance(first, AftbBlock)
        forked = self.fork(first.shared_experts, shared, len(self.tasks))
        read = forked.tasks.features.expand(len(self.tasks), -1, -1)
        tasks = torch.stack(
            [
                self._task_input(pooled, task, features, dense)
                for task, features in zip(self.tasks, read, strict=True)
            ]
        )
        shared, tasks = first(forked, tasks)
        for block in stacked:
            assert isinstance(block, AftbBlock)
            shared, tasks = block(plain(shared, block.shared_experts(shared)), tasks)
        return self.towers(tasks).squeeze(-1).t()

    def _task_input(
        self, pooled: dict[str, Tensor], task: str, shared: Tensor, dense: Tensor
    ) -> Tensor:
        """e^t: the task's own features, and the shared ones of features it has no table for."""
        parts = [pooled[task]] if task in pooled else []
        if len(self.unspecific_columns):
            parts.append(shared.index_select(1, self.unspecific_columns))
        return torch.cat([*parts, dense], dim=1)


class AftbBlock(nn.Module):
    """Experts of the shared and the tasks' streams, and a gate per task over all of them.

    Args:
        num_tasks: T.
        width: width I of every stream.
        shared_gate: also make the next shared stream, from all experts without stop-gradient.
    """

    def __init__(
        self, config: ModelConfig, num_tasks: int, width: int, *, shared_gate: bool
    ) -> None:
        super().__init__()
        self.num_shared = config.num_shared_experts
        self.num_own = config.num_task_experts
        self.stop_gradient = config.stop_gradient
        self.gate_input = config.gate_input
        num_experts = self.num_shared + num_tasks * self.num_own
        widths, dropout = config.expert_widths, config.dropout

        self.shared_experts = BatchedMlp(self.num_shared, width, widths, dropout=dropout)
        self.task_experts = BatchedMlp(num_tasks * self.num_own, width, widths, dropout=dropout)
        gate_width = 2 * width if self.gate_input == "both" else width
        self.gates = BatchedMlp(num_tasks, gate_width, config.gate_widths, num_experts, dropout)
        self.shared_gate = (
            BatchedMlp(1, width, config.gate_widths, num_experts, dropout) if shared_gate else None
        )

    def forward(self, forked: Forked, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Forked shared stream and streams (T, B, I) -> next streams (B, H) and (T, B, H).

        Without a shared gate the shared stream is returned as it came.
        """
        own_out = self.task_experts(tasks.repeat_interleave(self.num_own, dim=0))
        own_out = own_out.unflatten(0, (len(tasks), self.num_own))
        gate_logits = self.gates(self._gate_input(forked.tasks.features, tasks))
        reach: Reach = "forward" if self.stop_gradient else "all"
        mixed = mix(gate_logits.softmax(dim=-1), forked.tasks, own_out, reach)
        return self._next_shared(forked.shared, own_out), mixed

    def _gate_input(self, shared: Tensor, tasks: Tensor) -> Tensor:
        if self.gate_input == "task":
            return tasks
        shared = shared.expand_as(tasks)
        return shared if self.gate_input == "shared" else torch.cat([tasks, shared], dim=-1)

    def _next_shared(self, shared: Handle, own_out: Tensor) -> Tensor:
        if self.shared_gate is None:
            return shared.features
        weights = self.shared_gate(shared.features).softmax(dim=-1)
        experts = Handle(shared.features, shared.outputs.unsqueeze(0))
        return mix(weights, experts, own_out, "all")[0]


def task_specific_features(config: ModelConfig, schema: Schema) -> tuple[str, ...]:
    """Names of the features that have a table per task.

    Raises:
        UserError: a listed feature is not an id or bag feature of the data.
    """
    wanted = config.task_specific_features
    if wanted == "all":
        return tuple(f.name for f in schema.sparse)
    if wanted == "none":
        return ()
    if wanted in ("user", "item"):
        return tuple(f.name for f in schema.sparse if f.side == wanted)
    known = [f.name for f in schema.sparse]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(
            f"model.task_specific_features: unknown feature {unknown[0]!r}; "
            f"allowed: all, none, user, item, or some of {', '.join(known)}"
        )
    return tuple(name for name in known if name in wanted)
