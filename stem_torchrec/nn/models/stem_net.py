"""STEM-Net (Su et al., AAAI 2024): shared and task-specific tables, AFTB gates.

B rows, N dense features, T tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.errors import did_you_mean
from stem_torchrec.nn.decorrelation import DecorrelationWeight, decorrelation
from stem_torchrec.nn.extraction import ExtractionStack, GateInput
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined, side_by_side, stacked
from stem_torchrec.nn.model import ExtractionOptions, Model
from stem_torchrec.nn.owners import SHARED
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class StemNetOptions(ExtractionOptions):
    """Those of any model with task experts, what a gate reads, and which tables a task has.

    Raises:
        ValueError: as ``ExtractionOptions`` does.

    >>> StemNetOptions(task_specific_features="user").task_specific_features
    'user'
    """

    gate_input: Annotated[
        GateInput, Doc("features a gate reads: the task's and the shared ones, or one of them")
    ] = "both"
    stop_gradient: Annotated[
        bool, Doc("keep a task's loss from training other tasks' experts and tables")
    ] = True
    task_specific_features: Annotated[
        Literal["all", "none", "user", "item"] | tuple[str, ...],
        Doc("features with a table per task: all, none, a side, or a list of names"),
    ] = "all"
    decorrelation: DecorrelationWeight = 0.0


class StemNet(Model):
    """Experts per owner, one gate and one tower per task.

    A task's loss reaches the shared tables and experts and its own, never another task's
    (``layers`` = 1; in a stacked block the shared stream reads all experts, as in the paper).

    Raises:
        ValueError: a listed feature is not an id or bag feature; or as ``experts`` or
            ``Decorrelation`` do.

    >>> inputs = Inputs({"user_id": "user", "item_id": "item"}, dim=4, tasks=("click", "like"))
    >>> model = StemNet(inputs, StemNetOptions(expert_widths=(32,), num_shared_experts=2))
    >>> pooled = {owner: torch.randn(5, len(names) * 4) for owner, names in model.owners.items()}
    >>> model(pooled, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name = "stem_net"
    options_type = StemNetOptions
    unspecific_columns: Tensor

    def __init__(self, inputs: Inputs, options: StemNetOptions = StemNetOptions()) -> None:
        super().__init__()
        self.tasks = inputs.tasks
        names = inputs.names
        specific = task_specific_features(options.task_specific_features, inputs)
        self.owners = {SHARED: names} | {task: specific for task in self.tasks if specific}
        places = zip(names, side_by_side(inputs.columns.widths), strict=True)
        rest = [column for name, place in places if name not in specific for column in place]
        columns = torch.tensor(rest, dtype=torch.long)
        self.register_buffer("unspecific_columns", columns, persistent=False)
        self.stack = ExtractionStack(
            inputs.tasks,
            inputs.columns,
            "forward" if options.stop_gradient else "all",
            gate_input=options.gate_input,
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
        def task_streams(shared_by_task: Tensor) -> Tensor:
            """e^t: the task's own features, and the shared ones of those it has no table for."""
            streams = []
            for task, features in zip(self.tasks, shared_by_task, strict=True):
                parts = [pooled[task]] if task in pooled else []
                if len(self.unspecific_columns):
                    parts.append(features.index_select(1, self.unspecific_columns))
                streams.append(joined(*parts, dense))
            return stacked(streams)

        shared = joined(pooled[SHARED], dense)
        return self.towers(self.stack(self.fork, shared, task_streams))


def task_specific_features(wanted: str | tuple[str, ...], inputs: Inputs) -> tuple[str, ...]:
    """Names of the features that have a table per task.

    Raises:
        ValueError: a listed feature is not an id or bag feature.
    """
    if wanted == "all":
        return inputs.names
    if wanted == "none":
        return ()
    if isinstance(wanted, str):
        return tuple(name for name, side in inputs.features.items() if side == wanted)
    if unknown := [name for name in wanted if name not in inputs.features]:
        hint = did_you_mean(unknown[0], inputs.names)
        raise ValueError(
            f"task_specific_features: unknown feature {unknown[0]!r}{hint}; "
            f"allowed: all, none, user, item, or some of {', '.join(inputs.names)}"
        )
    return tuple(name for name in inputs.names if name in wanted)
