"""Adaptive information transfer multi-task model (Xi et al., KDD 2021).

B rows, I inputs, T tasks in order, H width of a tower.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.nn.calibrator import Calibrator
from stem_torchrec.nn.exact import in_float32
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.model import BOUNDARIES, DeepOptions, Model
from stem_torchrec.nn.owners import SHARED, Labels, Owned
from stem_torchrec.nn.task_order import full_order


@dataclass(frozen=True)
class AitmOptions(DeepOptions):
    """Those of any network, the order of the tasks, and how much it is enforced.

    >>> AitmOptions(task_order=("click", "buy")).calibrator_weight
    0.6
    """

    task_order: Annotated[
        tuple[str, ...] | None,
        Doc("tasks that follow one another: esmm, a pair; aitm, all of them"),
    ] = None
    calibrator_weight: Annotated[
        float, Ge(0), Le(1e6), Doc("weight of the penalty on a task likelier than its predecessor")
    ] = 0.6


class Aitm(Model):
    """Shared tables; each task's tower takes over what the one before it has learnt.

    All towers but the last are reached by later losses too and lie below the fork.

    Raises:
        ValueError: one task alone, or ``task_order`` is not of all tasks.

    >>> model = Aitm(Inputs({"user_id": "user"}, dim=4, tasks=("click", "buy")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "aitm"
    options_type = AitmOptions
    boundaries = tuple(name for name in BOUNDARIES if name != "experts")
    same_role: ClassVar[Mapping[str, str]] = {
        "last_tower": "chain.towers",
        "last_transfer": "chain.transfers",
    }

    def __init__(self, inputs: Inputs, options: AitmOptions = AitmOptions()) -> None:
        super().__init__()
        self.order = full_order(options.task_order, inputs.tasks)
        *earlier, last = names = [inputs.tasks[task] for task in self.order]
        self.num_tasks = len(names)
        self.owners = {SHARED: inputs.names}
        widths = (*options.expert_widths, *options.tower_widths)
        width = inputs.columns.width
        self.chain = _Chain(earlier, width, widths, options.dropout)
        self.last_tower = BatchedMlp(1, width, widths, dropout=options.dropout, owners=[last])
        self.last_transfer = _Transfer(last, widths[-1])
        self.heads = BatchedMlp(self.num_tasks, widths[-1], (), 1, owners=names)
        self.penalty = Calibrator(self.order, options.calibrator_weight)
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.chain.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        read = self.fork(self.chain, shared, self.num_tasks).tasks
        outputs = [of.unbind() for of in read.outputs.expand(self.num_tasks, -1, -1, -1).unbind()]
        *earlier, last = self.order
        own = self.last_tower(read.features.expand(self.num_tasks, -1, -1)[last])[0]
        states = [outputs[task][place] for place, task in enumerate(earlier)]
        states.append(self.last_transfer(outputs[last][-1], own))
        logits = in_float32(self.heads, torch.stack(states)).squeeze(-1)
        return logits[[self.order.index(task) for task in range(self.num_tasks)]].t()


class _Chain(nn.Module):
    """K towers, each but the first reading the state before it: (B, I) -> (K, B, H)."""

    def __init__(
        self, tasks: Sequence[str], width: int, widths: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        self.towers = BatchedMlp(len(tasks), width, widths, dropout=dropout, owners=tasks)
        self.transfers = nn.ModuleList(_Transfer(task, widths[-1]) for task in tasks[1:])

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.towers(x).unbind()
        states = [first]
        for transfer, own in zip(self.transfers, others, strict=True):
            states.append(transfer(states[-1], own))
        return torch.stack(states)


class _Transfer(Owned):
    """Attention over the transferred state and the task's own (equations 4 to 7)."""

    def __init__(self, task: str, width: int) -> None:
        super().__init__()
        self.owner = task
        self.transferred = nn.Linear(width, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def owned_dims(self) -> dict[str, dict[int, Labels]]:
        return {}

    def forward(self, previous: Tensor, own: Tensor) -> Tensor:
        """(B, H) twice -> (B, H)."""
        both = torch.stack([self.transferred(previous).relu(), own], dim=1)
        scores = (self.query(both) * self.key(both)).sum(dim=2) / own.shape[1] ** 0.5
        return (scores.softmax(dim=1).unsqueeze(2) * self.value(both)).sum(dim=1)
