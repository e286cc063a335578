"""Blocks of shared and task experts with a gate per task (PLE, RecSys 2020; STEM, AAAI 2024).

B rows, T tasks, M_s shared experts, M_t experts per task, streams of width I, experts of width H.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.fork import Fork, Forked, Handle, plain
from stem_torchrec.nn.gates import Gates, Reach, mix
from stem_torchrec.nn.inputs import Inputs


class ExtractionStack(nn.Module):
    """``config.layers`` blocks; the last one makes the tasks' streams alone.

    Args:
        tasks: their names.
        reach: which experts of other tasks a gate reads and trains.
        gate_input: ``task``: its stream; ``shared``; or ``both``.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[str],
        inputs: Inputs,
        reach: Reach,
        gate_input: str,
    ) -> None:
        super().__init__()
        self.num_tasks = len(tasks)
        widths = [inputs.width, *[config.expert_widths[-1]] * config.layers]
        self.blocks = nn.ModuleList()
        for layer, (width, _) in enumerate(pairwise(widths), start=1):
            stage = inputs if layer == 1 else Inputs(0, 0, width)
            last = layer == config.layers
            self.blocks.append(
                Extraction(config, tasks, stage, reach, gate_input, shared_gate=not last)
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


class Extraction(nn.Module):
    """Experts of the shared and the tasks' streams, and a gate per task.

    Args:
        shared_gate: also make the next shared stream, from all experts without stop-gradient.
    """

    def __init__(
        self,
        config: ModelConfig,
        tasks: Sequence[str],
        inputs: Inputs,
        reach: Reach,
        gate_input: str,
        *,
        shared_gate: bool,
    ) -> None:
        super().__init__()
        self.num_shared, self.num_own = config.num_shared_experts, config.num_task_experts
        self.reach, self.gate_input = reach, gate_input
        if inputs.num_fields == 0:  # a stream of an earlier block
            config = config.model_copy(update={"expert": "mlp"})
        shared = ["shared"] * self.num_shared
        everything = [*shared, *(task for task in tasks for _ in range(self.num_own))]
        readable = [*shared, *["own"] * self.num_own] if reach == "own" else everything
        width = inputs.width
        gate_width = 2 * width if gate_input == "both" else width
        self.shared_experts = experts(self.num_shared, inputs, config)
        self.task_experts = experts(len(tasks) * self.num_own, inputs, config)
        self.gates = Gates(tasks, readable, gate_width, config)
        self.shared_gate = Gates(["shared"], everything, width, config) if shared_gate else None

    def forward(self, forked: Forked, tasks: Tensor) -> tuple[Tensor, Tensor]:
        """Forked shared stream and streams (T, B, I) -> next streams (B, H) and (T, B, H).

        Without a shared gate the shared stream is returned as it came.
        """
        own_out = self.task_experts(tasks.repeat_interleave(self.num_own, dim=0))
        own_out = own_out.unflatten(0, (len(tasks), self.num_own))
        weights = self.gates(self._gate_input(forked.tasks.features, tasks))
        mixed = mix(weights, forked.tasks, own_out, self.reach)
        return self._next_shared(forked.shared, own_out), mixed

    def _gate_input(self, shared: Tensor, tasks: Tensor) -> Tensor:
        if self.gate_input == "task":
            return tasks
        shared = shared.expand_as(tasks)
        return shared if self.gate_input == "shared" else torch.cat([tasks, shared], dim=-1)

    def _next_shared(self, shared: Handle, own_out: Tensor) -> Tensor:
        if self.shared_gate is None:
            return shared.features
        weights = self.shared_gate(shared.features)
        outputs = Handle(shared.features, shared.outputs.unsqueeze(0))
        return mix(weights, outputs, own_out, "all")[0]
