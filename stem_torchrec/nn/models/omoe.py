"""One-gate mixture of experts (Ma et al., KDD 2018, section 4.1).

B rows, I inputs, M experts of width H, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.fork import Handle
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Columns, Inputs, joined
from stem_torchrec.nn.model import GatedOptions, Model, numbered_experts
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class OmoeOptions(GatedOptions):
    """Those of any model with gates.

    >>> OmoeOptions(num_shared_experts=4).num_shared_experts
    4
    """


class Omoe(Model):
    """All tasks read one mixture: experts and gate are shared, towers are not.

    Raises:
        ValueError: as ``experts`` does.

    >>> model = Omoe(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "omoe"
    options_type = OmoeOptions

    def __init__(self, inputs: Inputs, options: OmoeOptions = OmoeOptions()) -> None:
        super().__init__()
        self.num_tasks = len(inputs.tasks)
        self.owners = {SHARED: inputs.names}
        self.mixture = _GatedExperts(inputs.columns, options)
        self.towers = Towers(
            inputs.tasks, options.expert_widths[-1], options.tower_widths, options.dropout
        )
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.mixture.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        (outputs,) = self.fork(self.mixture, shared, self.num_tasks).tasks.outputs.unbind(dim=1)
        return self.towers(outputs.expand(self.num_tasks, -1, -1))


class _GatedExperts(nn.Module):
    """M experts under one gate: (B, I) -> (1, B, H)."""

    def __init__(self, columns: Columns, options: OmoeOptions) -> None:
        super().__init__()
        names = numbered_experts(options.num_shared_experts)
        self.experts = experts(
            options.expert, names, columns, options.expert_widths, options.dropout
        )
        self.gate = Gates(["all"], names, columns.width, options.gate_widths, options.dropout)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.experts(x).unsqueeze(0)
        return mix(self.gate(x), Handle(x, outputs), outputs[:, :0], "all")
