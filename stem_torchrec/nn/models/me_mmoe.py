"""Multi-embedding MMoE (compared in STEM, AAAI 2024): one set of tables per expert.

B rows, C columns of a set of pooled features, N dense features, M experts of width H, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.decorrelation import DecorrelationWeight, decorrelation
from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.gates import Gates, mix
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Columns, Inputs, joined, stacked
from stem_torchrec.nn.model import GatedOptions, Model, numbered_experts
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class MeMmoeOptions(GatedOptions):
    """Those of any model with gates, and a penalty on tables alike.

    >>> MeMmoeOptions(num_shared_experts=4).num_shared_experts
    4
    """

    decorrelation: DecorrelationWeight = 0.0


class MeMmoe(Model):
    """MMoE whose expert k reads its own tables ``expert_k__feature``; gates read all tables.

    Raises:
        ValueError: as ``experts`` or ``Decorrelation`` do.

    >>> inputs = Inputs({"user_id": "user"}, dim=4, tasks=("click", "like"))
    >>> MeMmoe(inputs, MeMmoeOptions(num_shared_experts=2)).owners
    {'expert_0': ('user_id',), 'expert_1': ('user_id',)}
    """

    name = "me_mmoe"
    options_type = MeMmoeOptions

    def __init__(self, inputs: Inputs, options: MeMmoeOptions = MeMmoeOptions()) -> None:
        super().__init__()
        self.num_tasks = len(inputs.tasks)
        self.shared_owners = numbered_experts(options.num_shared_experts)
        self.owners = dict.fromkeys(self.shared_owners, inputs.names)
        self.experts = _ExpertsWithTables(inputs.columns, options)
        self.gates = Gates(
            inputs.tasks,
            self.shared_owners,
            self.experts.width_in,
            options.gate_widths,
            options.dropout,
        )
        self.towers = Towers(
            inputs.tasks, options.expert_widths[-1], options.tower_widths, options.dropout
        )
        self.decorrelation = decorrelation(self.owners, inputs.widths, options.decorrelation)
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(*(pooled[owner] for owner in self.shared_owners), dense)
        read = self.fork(self.experts, shared, self.num_tasks).tasks
        weights = self.gates(read.features.expand(self.num_tasks, -1, -1))
        return self.towers(mix(weights, read, read.outputs[:1, :0], "all"))


class _ExpertsWithTables(nn.Module):
    """Expert k reads the k-th of M sets of pooled features: (B, M * C + N) -> (M, B, H)."""

    def __init__(self, columns: Columns, options: MeMmoeOptions) -> None:
        super().__init__()
        self.num, self.columns = options.num_shared_experts, columns
        self.width_in = self.num * columns.pooled_width + columns.num_dense
        names = numbered_experts(self.num)
        self.experts = experts(
            options.expert, names, columns, options.expert_widths, options.dropout
        )

    def forward(self, x: Tensor) -> Tensor:
        sizes = [self.columns.pooled_width] * self.num + [self.columns.num_dense]
        *pooled, dense = x.split(sizes, 1)
        return self.experts(stacked([joined(part, dense) for part in pooled]))
