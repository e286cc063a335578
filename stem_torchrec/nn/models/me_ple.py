"""Multi-embedding PLE (compared in STEM, AAAI 2024): one set of tables per group of experts.

B rows, I inputs, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.decorrelation import DecorrelationWeight, decorrelation
from stem_torchrec.nn.extraction import ExtractionStack
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined, stacked
from stem_torchrec.nn.model import ExtractionOptions, Model
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class MePleOptions(ExtractionOptions):
    """Those of any model with task experts, and a penalty on tables alike.

    >>> MePleOptions(layers=2).layers
    2
    """

    decorrelation: DecorrelationWeight = 0.0


class MePle(Model):
    """PLE whose shared experts read shared tables and whose task experts read the task's own.

    Raises:
        ValueError: as ``experts`` or ``Decorrelation`` do.

    >>> model = MePle(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> list(model.owners)
    ['shared', 'click', 'like']
    """

    name = "me_ple"
    options_type = MePleOptions

    def __init__(self, inputs: Inputs, options: MePleOptions = MePleOptions()) -> None:
        super().__init__()
        self.tasks = inputs.tasks
        self.owners = dict.fromkeys((SHARED, *self.tasks), inputs.names)
        self.stack = ExtractionStack(
            inputs.tasks,
            inputs.columns,
            "own",
            gate_input="task",
            layers=options.layers,
            num_shared_experts=options.num_shared_experts,
            num_task_experts=options.num_task_experts,
            expert=options.expert,
            expert_widths=options.expert_widths,
            gate_widths=options.gate_widths,
            dropout=options.dropout,
        )
        self.towers = Towers(
            inputs.tasks, self.stack.width_out, options.tower_widths, options.dropout
        )
        self.decorrelation = decorrelation(self.owners, inputs.widths, options.decorrelation)
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        own = stacked([joined(pooled[task], dense) for task in self.tasks])
        return self.towers(self.stack(self.fork, shared, lambda _: own))
