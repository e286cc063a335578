"""Blocks of shared and task experts with a gate per task (PLE, RecSys 2020; STEM, AAAI 2024).

B rows, T tasks, M_s shared experts, M_t experts per task, streams of width I, experts of width H.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from stem_torchrec.nn.experts import ExpertKind, experts
from stem_torchrec.nn.fork import Fork, Forked, Handle, plain
from stem_torchrec.nn.gates import Gates, Reach, mix
from stem_torchrec.nn.inputs import Columns
from stem_torchrec.nn.owners import SHARED, numbered

GateInput = Literal["both", "task", "shared"]
"""What a task's gate sees: its stream and the shared one side by side, or one of them."""


class Extraction(nn.Module):
    """Experts of the shared and the tasks' streams, and a gate per task.

    Args:
        tasks: their names.
        columns: of a stream.
        reach: which experts of other tasks a gate reads and trains.
        num_shared_experts: M_s.
        num_task_experts: M_t.
        expert_widths: an expert's layers; the last one is H.
        gate_widths: hidden layers of a gate.
        shared_gate: also make the next shared stream, from all experts without stop-gradient.

    >>> block = Extraction(["click", "like"], Columns((4, 4), 0), "own", gate_input="task")
    >>> forked = plain(torch.randn(5, 8), block.shared_experts(torch.randn(5, 8)))
    >>> block(forked, torch.randn(2, 5, 8))[1].shape
    torch.Size([2, 5, 512])
    """

    def __init__(
        self,
        tasks: Sequence[str],
        columns: Columns,
        reach: Reach,
        *,
        gate_input: GateInput = "both",
        num_shared_experts: int = 1,
        num_task_experts: int = 1,
        expert: ExpertKind = "mlp",
        expert_widths: Sequence[int] = (512, 512, 512),
        gate_widths: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        shared_gate: bool = False,
    ) -> None:
        super().__init__()
        self.num_shared_experts = num_shared_experts
        self.num_task_experts = num_task_experts
        self.reach, self.gate_input = reach, gate_input
        of_shared = [SHARED] * num_shared_experts
        of_tasks = [task for task in tasks for _ in range(num_task_experts)]
        readable = [*of_shared, *(["own"] * num_task_experts if reach == "own" else of_tasks)]
        width = columns.width
        gate_width = 2 * width if gate_input == "both" else width

        def of(owners: Sequence[str]) -> nn.Module:
            return experts(expert, numbered(owners), columns, expert_widths, dropout)

        self.shared_experts, self.task_experts = of(of_shared), of(of_tasks)
        self.gates = Gates(tasks, readable, gate_width, gate_widths, dropout)
        self.shared_gate = (
            Gates([SHARED], [*of_shared, *of_tasks], width, gate_widths, dropout)
            if shared_gate
            else None
        )

    def forward(self, forked: Forked, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Forked shared stream and streams (T, B, I) -> next streams (B, H) and (T, B, H).

        Without a shared gate the shared stream is returned as it came.
        """
        num = self.num_task_experts  # one expert reads its task's stream as it is, not a copy
        own_out = self.task_experts(tasks if num == 1 else tasks.repeat_interleave(num, dim=0))
        own_out = own_out.unflatten(0, (len(tasks), num))
        weights = self.gates(*self._gate_input(forked.tasks.features, tasks))
        mixed = mix(weights, forked.tasks, own_out, self.reach)
        return self._next_shared(forked.shared, own_out), mixed

    def _gate_input(self, shared: Tensor, tasks: Tensor) -> tuple[Tensor, ...]:
        """Columns of each gate, and after them the shared ones, one copy for all gates or each."""
        if self.gate_input == "task":
            return (tasks,)
        if self.gate_input == "shared":
            return (shared.expand_as(tasks),)
        if len(tasks) > 1 and self.gates.mlp.hidden:
            return tasks, shared[0] if len(shared) == 1 else shared
        return (torch.cat([tasks, shared.expand_as(tasks)], dim=-1),)

    def _next_shared(self, shared: Handle, own_out: Tensor) -> Tensor:
        if self.shared_gate is None:
            return shared.features
        weights = self.shared_gate(shared.features)
        outputs = Handle(shared.features, shared.outputs.unsqueeze(0))
        return mix(weights, outputs, own_out, "all")[0]


class ExtractionStack(nn.Module):
    """Blocks of extraction; the last one makes the tasks' streams alone.

    Args:
        tasks: their names.
        columns: of the features that the first block reads.
        reach: which experts of other tasks a gate reads and trains.
        layers: number of blocks.
        expert: kind of the first block's experts; there are no features to pair in the others.
        others: as ``Extraction`` has them.

    Raises:
        ValueError: as ``experts`` does.

    >>> stack = ExtractionStack(["click", "like"], Columns((4, 4), 0), "own", gate_input="task")
    >>> stack(PlainFork(), torch.randn(5, 8), lambda shared: shared).shape
    torch.Size([2, 5, 512])
    """

    def __init__(
        self,
        tasks: Sequence[str],
        columns: Columns,
        reach: Reach,
        *,
        gate_input: GateInput = "both",
        layers: int = 1,
        num_shared_experts: int = 1,
        num_task_experts: int = 1,
        expert: ExpertKind = "mlp",
        expert_widths: Sequence[int] = (512, 512, 512),
        gate_widths: Sequence[int] = (128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_tasks = len(tasks)
        widths = [columns.width, *[expert_widths[-1]] * layers]
        self.blocks = nn.ModuleList(
            Extraction(
                tasks,
                columns if layer == 1 else Columns((), width),
                reach,
                gate_input=gate_input,
                num_shared_experts=num_shared_experts,
                num_task_experts=num_task_experts,
                expert=expert if layer == 1 else "mlp",
                expert_widths=expert_widths,
                gate_widths=gate_widths,
                dropout=dropout,
                shared_gate=layer < layers,
            )
            for layer, (width, _) in enumerate(pairwise(widths), start=1)
        )
        self.width_out = widths[-1]

    @property
    def trunk(self) -> nn.Module:
        """The first block's shared experts: the dense weights that every task's loss reaches."""
        first = self.blocks[0]
        assert isinstance(first, Extraction)
        return first.shared_experts

    def forward(
        self, fork: Fork, shared: Tensor, task_streams: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Shared features (B, I) -> the tasks' streams (T, B, H).

        ``task_streams`` makes the tasks' inputs (T, B, I) from the shared features as each task
        reads them (T, B, I).
        """
        first, *stacked = self.blocks
        forked = fork(self.trunk, shared, self.num_tasks)
        tasks = task_streams(forked.tasks.features.expand(self.num_tasks, -1, -1))
        shared, tasks = first(forked, tasks)
        for block in stacked:
            assert isinstance(block, Extraction)
            shared, tasks = block(plain(shared, block.shared_experts(shared)), tasks)
        return tasks
