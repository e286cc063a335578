"""A model of one's own: one network for all tasks, and what a task's own tables add to it.

From the folder above this one, on any prepared data and any number of ranks:

    stem-torchrec train --config configs/synthetic.yaml --run.dir runs/own \
        --model.name examples.own_model:Residual --model.width 64
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.nn import BatchedMlp, Inputs, Model, Options


@dataclass(frozen=True)
class ResidualOptions(Options):
    """Fields are keys of the ``model`` section of a run, with their bounds and help."""

    width: Annotated[int, Ge(1), Doc("width of the hidden layers")] = 32


class Residual(Model):
    """logit_t = shared network + network of task t, each on tables of its own."""

    options_type = ResidualOptions

    def __init__(self, inputs: Inputs, options: ResidualOptions = ResidualOptions()) -> None:
        super().__init__()
        self.tasks = inputs.tasks
        self.owners = dict.fromkeys(("shared", *inputs.tasks), inputs.names)
        width, hidden = inputs.columns.width, (options.width,)
        self.network = BatchedMlp(1, width, hidden, 1)
        self.own = BatchedMlp(len(inputs.tasks), width, hidden, 1, owners=inputs.tasks)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.network.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = torch.cat([pooled["shared"], dense], dim=1)
        # What tasks share goes through the fork: that is where balancing sees their gradients.
        (common,) = self.fork(self.network, shared, len(self.tasks)).tasks.outputs.unbind(dim=1)
        own = torch.stack([torch.cat([pooled[task], dense], dim=1) for task in self.tasks])
        return (common + self.own(own)).squeeze(-1).t()
