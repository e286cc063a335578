"""Shared-bottom (Caruana, 1997): one network for all tasks, then a tower each.

B rows, I inputs, T tasks, H width of the bottom.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from stem_torchrec.nn.experts import experts
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.model import ExpertOptions, Model
from stem_torchrec.nn.owners import SHARED, numbered
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class SharedBottomOptions(ExpertOptions):
    """Those of any network of an expert and towers.

    >>> SharedBottomOptions(tower_widths=()).tower_widths
    ()
    """


class SharedBottom(Model):
    """One expert that every tower reads as it is.

    Raises:
        ValueError: as ``experts`` does.

    >>> model = SharedBottom(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "shared_bottom"
    options_type = SharedBottomOptions

    def __init__(
        self, inputs: Inputs, options: SharedBottomOptions = SharedBottomOptions()
    ) -> None:
        super().__init__()
        self.num_tasks = len(inputs.tasks)
        self.owners = {SHARED: inputs.names}
        self.bottom = experts(
            options.expert,
            numbered([SHARED]),
            inputs.columns,
            options.expert_widths,
            options.dropout,
        )
        self.towers = Towers(
            inputs.tasks, self.bottom.width_out, options.tower_widths, options.dropout
        )
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.bottom.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        (outputs,) = self.fork(self.bottom, shared, self.num_tasks).tasks.outputs.unbind(dim=1)
        return self.towers(outputs.expand(self.num_tasks, -1, -1))
