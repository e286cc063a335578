"""Multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2).

B rows, I inputs, M experts of width H, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.model import GatedOptions, Model, numbered_experts
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class MmoeOptions(GatedOptions):
    """Those of any model with gates.

    >>> MmoeOptions(num_shared_experts=4).num_shared_experts
    4
    """


class Mmoe(Model):
    """Shared experts; every task has its own gate and tower.

    Raises:
        ValueError: as ``experts`` does.

    >>> model = Mmoe(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "mmoe"
    options_type = MmoeOptions

    def __init__(self, inputs: Inputs, options: MmoeOptions = MmoeOptions()) -> None:
        super().__init__()
        self.num_tasks = len(inputs.tasks)
        self.owners = {SHARED: inputs.names}
        columns, names = inputs.columns, numbered_experts(options.num_shared_experts)
        self.experts = experts(
            options.expert, names, columns, options.expert_widths, options.dropout
        )
        self.gates = Gates(inputs.tasks, names, columns.width, options.gate_widths, options.dropout)
        self.towers = Towers(
            inputs.tasks, self.experts.width_out, options.tower_widths, options.dropout
        )
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        read = self.fork(self.experts, shared, self.num_tasks).tasks
        weights = self.gates(read.features.expand(self.num_tasks, -1, -1))
        return self.towers(mix(weights, read, read.outputs[:1, :0], "all"))
