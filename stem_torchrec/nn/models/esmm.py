"""Entire-space multi-task model (Ma et al., SIGIR 2018): p(second) = p(first) p(second | first).

B rows, I inputs, T tasks.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from typing_extensions import Doc

from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.model import BOUNDARIES, DeepOptions, Model
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.task_order import ordered_pair


@dataclass(frozen=True)
class EsmmOptions(DeepOptions):
    """Those of any network, and the pair of tasks.

    >>> EsmmOptions(task_order=("click", "buy")).task_order
    ('click', 'buy')
    """

    task_order: Annotated[
        tuple[str, ...] | None,
        Doc("tasks that follow one another: esmm, a pair; aitm, all of them"),
    ] = None


class Esmm(Model):
    """Shared tables and a network per task; the second task of the pair is a product.

    The first task's network is reached by both losses and lies below the fork. Tasks outside the
    pair have a network of their own.

    Raises:
        ValueError: ``task_order`` is not of two of the tasks.

    >>> inputs = Inputs({"user_id": "user"}, dim=4, tasks=("click", "buy"))
    >>> model = Esmm(inputs, EsmmOptions(task_order=("click", "buy")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "esmm"
    options_type = EsmmOptions
    boundaries = tuple(name for name in BOUNDARIES if name != "experts")
    same_role: ClassVar[Mapping[str, str]] = {"first_network": "networks"}

    def __init__(self, inputs: Inputs, options: EsmmOptions = EsmmOptions()) -> None:
        super().__init__()
        tasks = inputs.tasks
        self.num_tasks = len(tasks)
        self.first, self.second = ordered_pair(options.task_order, tasks)
        self.others = [task for task in range(self.num_tasks) if task != self.first]
        self.owners = {SHARED: inputs.names}
        widths = (*options.expert_widths, *options.tower_widths)

        def networks(of: list[int]) -> BatchedMlp:
            names = [tasks[task] for task in of]
            return BatchedMlp(
                len(of), inputs.columns.width, widths, 1, options.dropout, owners=names
            )

        self.first_network, self.networks = networks([self.first]), networks(self.others)
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.first_network.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
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
