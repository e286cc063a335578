"""Progressive layered extraction (Tang et al., RecSys 2020) on shared tables.

B rows, I inputs, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.extraction import ExtractionStack
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.model import ExtractionOptions, Model
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class PleOptions(ExtractionOptions):
    """Those of any model with task experts.

    >>> PleOptions(layers=2).layers
    2
    """


class Ple(Model):
    """Shared and task experts on one set of tables; a task reads and trains its own and the shared.

    In a stacked block the shared stream reads the experts of all tasks, as in the paper.

    Raises:
        ValueError: as ``experts`` does.

    >>> model = Ple(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "ple"
    options_type = PleOptions

    def __init__(self, inputs: Inputs, options: PleOptions = PleOptions()) -> None:
        super().__init__()
        self.owners = {SHARED: inputs.names}
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
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        return self.towers(self.stack(self.fork, shared, lambda features: features))
