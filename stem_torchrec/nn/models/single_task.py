"""A network per task with tables of its own: the reference for what sharing brings.

B rows, I inputs, T tasks, H width of the last expert layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined, stacked
from stem_torchrec.nn.model import ExpertOptions, Model
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class SingleTaskOptions(ExpertOptions):
    """Those of any network of an expert and a tower.

    >>> SingleTaskOptions(dropout=0.1).dropout
    0.1
    """


class SingleTask(Model):
    """T independent networks, each an expert and a tower, trained side by side.

    Raises:
        ValueError: as ``experts`` does.

    >>> inputs = Inputs({"user_id": "user"}, dim=4, tasks=("click", "like"))
    >>> SingleTask(inputs).owners
    {'click': ('user_id',), 'like': ('user_id',)}
    """

    name = "single_task"
    options_type = SingleTaskOptions
    shared_owners = ()
    boundaries = ()

    def __init__(self, inputs: Inputs, options: SingleTaskOptions = SingleTaskOptions()) -> None:
        super().__init__()
        self.tasks = inputs.tasks
        self.owners = dict.fromkeys(self.tasks, inputs.names)
        self.experts = experts(
            options.expert, self.tasks, inputs.columns, options.expert_widths, options.dropout
        )
        self.towers = Towers(
            self.tasks, self.experts.width_out, options.tower_widths, options.dropout
        )
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        inputs = [joined(pooled[task], dense) for task in self.tasks]
        return self.towers(self.experts(stacked(inputs)))
