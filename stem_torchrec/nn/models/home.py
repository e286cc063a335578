"""HoME, a hierarchy of multi-gate experts (Wang et al., KDD 2025, arXiv 2408.05430).

B rows, I inputs, T tasks in G groups, E shared experts per stream, M experts per task, all of width
H. A stream is what a layer makes of the features: one for all tasks and one for each group of them.

Departures from the paper. Experts are normalised over their H outputs (layer normalisation), not
over the batch: so a step does not depend on which ranks its rows lie on, and a served row not on
those beside it. An expert has one feature gate of low rank where the paper mixes several. Every
expert of both layers has a feature gate, and every stream and task a self gate.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le, MaxLen
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu
from typing_extensions import Doc

from stem_torchrec.nn.gates import Gates
from stem_torchrec.nn.initial import initialise
from stem_torchrec.nn.inputs import Inputs, joined
from stem_torchrec.nn.mlp import BatchedLinear, BatchedMlp
from stem_torchrec.nn.model import BOUNDARIES, MAX_DEPTH, MAX_EXPERTS, DeepOptions, Model, Widths
from stem_torchrec.nn.owners import SHARED, Labels, Owned, numbered
from stem_torchrec.nn.towers import Towers


@dataclass(frozen=True)
class HomeOptions(DeepOptions):
    """Those of any network, numbers of experts, and which tasks form a group.

    Raises:
        ValueError: ``FIELD: value; allowed: ...``.

    >>> HomeOptions(task_groups={"click": "watch", "like": "react"}).feature_gate_rank
    16
    """

    num_shared_experts: Annotated[
        int, Ge(1), Le(MAX_EXPERTS), Doc("shared experts per layer (M_s)")
    ] = 1
    num_task_experts: Annotated[
        int, Ge(1), Le(MAX_EXPERTS), Doc("experts per task and layer (M_t)")
    ] = 1
    gate_widths: Annotated[Widths, MaxLen(MAX_DEPTH), Doc("units of a gate's hidden layers")] = (
        128,
        64,
    )
    feature_gate_rank: Annotated[
        int, Ge(1), Le(1 << 20), Doc("rank of the map by which an expert weighs its inputs")
    ] = 16
    task_groups: Annotated[
        dict[str, str] | None,
        Doc("task -> name of its group, of all tasks; null: one group of all"),
    ] = None


class Home(Model):
    """Two layers of experts: of all tasks and of groups of tasks, then of the tasks as well.

    A task reads the experts of all tasks, of its group and its own, by the streams of all tasks
    and of its group. What is below the tasks' own experts lies below the fork.

    Raises:
        ValueError: ``task_groups`` is not of all tasks.

    >>> inputs = Inputs({"user_id": "user"}, dim=4, tasks=("click", "like", "share"))
    >>> groups = {"click": "watch", "like": "react", "share": "react"}
    >>> model = Home(inputs, HomeOptions(task_groups=groups))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 3])
    """

    name = "home"
    options_type = HomeOptions
    # Not only gates read what the trunk makes: its streams are the tasks' experts' inputs, too.
    boundaries = tuple(name for name in BOUNDARIES if name != "experts")

    def __init__(self, inputs: Inputs, options: HomeOptions = HomeOptions()) -> None:
        super().__init__()
        tasks, width = inputs.tasks, options.expert_widths[-1]
        self.owners = {SHARED: inputs.names}
        self.num_own, self.num_shared = options.num_task_experts, options.num_shared_experts
        groups = _groups(options.task_groups, tasks)
        names = list(dict.fromkeys(groups))
        self.stream_of = [1 + names.index(group) for group in groups]
        self.trunk = _Trunk(names, inputs.columns.width, options)
        own = [task for task in tasks for _ in range(self.num_own)]
        self.experts = _Experts(own, width, options)
        readable = [SHARED] * self.num_shared + ["group"] * self.num_shared + ["own"] * self.num_own
        self.gates = Gates(tasks, readable, 2 * width, options.gate_widths, options.dropout)
        self.self_gates = _SelfGates(tasks, self.num_own, width, options)
        self.towers = Towers(tasks, width, options.tower_widths, options.dropout)
        initialise(self, options.init)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()

    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        shared = joined(pooled[SHARED], dense)
        num_tasks = len(self.stream_of)
        outputs = self.fork(self.trunk, shared, num_tasks).tasks.outputs
        streams, experts = self.trunk.parts(outputs.expand(num_tasks, -1, -1, -1))
        of_group = _picked(streams, self.stream_of)
        own = self.experts(of_group.repeat_interleave(self.num_own, dim=0))
        own = own.unflatten(0, (num_tasks, self.num_own))
        readable = torch.cat([experts[:, 0], _picked(experts, self.stream_of), own], dim=1)
        weights = self.gates(torch.cat([streams[:, 0], of_group], dim=-1))
        return self.towers(_mixed(weights, readable) + _mixed(self.self_gates(of_group), own))


class _Trunk(nn.Module):
    """What is of all tasks or of a group: (B, I) -> (S + S * E, B, H), with S = 1 + G streams.

    First the streams, of all tasks and of each group, then the second layer's E experts of each.
    """

    def __init__(self, groups: Sequence[str], width_in: int, options: HomeOptions) -> None:
        super().__init__()
        num = self.num_experts = options.num_shared_experts
        owners = [SHARED, *groups]
        self.num_streams = len(owners)
        each = [owner for owner in owners for _ in range(num)]
        width, widths, dropout = options.expert_widths[-1], options.gate_widths, options.dropout
        self.experts = _Experts(each, width_in, options)
        self.shared_gate = Gates([SHARED], each, width_in, widths, dropout)
        readable = [SHARED] * num + ["own"] * num
        self.group_gates = Gates(groups, readable, width_in, widths, dropout)
        self.self_gates = _SelfGates(owners, num, width_in, options)
        self.upper_experts = _Experts(each, width, options)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.experts(x)
        of_all, *of_groups = own = flat.unflatten(0, (self.num_streams, self.num_experts))
        readable = torch.stack([torch.cat([of_all, of_group]) for of_group in of_groups])
        streams = torch.cat(
            [_mixed(self.shared_gate(x), flat[None]), _mixed(self.group_gates(x), readable)]
        )
        streams = streams + _mixed(self.self_gates(x), own)
        upper = self.upper_experts(streams.repeat_interleave(self.num_experts, dim=0))
        return torch.cat([streams, upper])

    def parts(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """(T, S + S * E, B, H) -> streams (T, S, B, H) and their experts (T, S, E, B, H)."""
        streams, experts = outputs.tensor_split([self.num_streams], dim=1)
        return streams, experts.unflatten(1, (self.num_streams, self.num_experts))


class _Experts(Owned):
    """Perceptrons of gated inputs, normalised, then Swish: (K, B, I) or (B, I) -> (K, B, H).

    Expert k reads x * 2 sigmoid(x A_k B_k), which starts near x itself.
    """

    def __init__(self, owners: Sequence[str], width_in: int, options: HomeOptions) -> None:
        super().__init__()
        self.owners = numbered(owners)
        num, rank = len(owners), min(options.feature_gate_rank, width_in)
        self.gate_down = BatchedLinear(num, width_in, rank, owners=self.owners)
        self.gate_up = BatchedLinear(num, rank, width_in, owners=self.owners)
        *hidden, width = options.expert_widths
        self.mlp = BatchedMlp(num, width_in, hidden, width, options.dropout, owners=self.owners)
        self.scale = nn.Parameter(torch.ones(num, 1, width))
        self.offset = nn.Parameter(torch.zeros(num, 1, width))
        self.dropout = nn.Dropout(options.dropout)

    def owned_dims(self) -> dict[str, dict[int, Labels]]:
        return {"scale": {0: self.owners}, "offset": {0: self.owners}}

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(len(self.owners), -1, -1)
        outputs = self.mlp(x * 2 * self.gate_up(self.gate_down(x)).sigmoid())
        normal = layer_norm(outputs, outputs.shape[-1:])
        return self.dropout(silu(normal * self.scale + self.offset))


class _SelfGates(nn.Module):
    """Weights of each stream's own K experts, added to what all gates make of them.

    A softmax, or for one expert a sigmoid: (G, B, I), or (B, I) that all read, -> (G, B, K).
    """

    def __init__(self, names: Sequence[str], num: int, width_in: int, options: HomeOptions) -> None:
        super().__init__()
        widths, dropout = options.gate_widths, options.dropout
        outputs = numbered(["own"] * num)
        self.mlp = BatchedMlp(
            len(names), width_in, widths, num, dropout, owners=names, outputs=outputs
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = self.mlp(x)
        return scores.sigmoid() if scores.shape[-1] == 1 else scores.softmax(dim=-1)


def _mixed(weights: Tensor, terms: Tensor) -> Tensor:
    """Weights (G, B, K) of terms (G, K, B, H) -> their sums (G, B, H)."""
    return torch.einsum("gbk,gkbh->gbh", weights, terms)


def _picked(by_task: Tensor, places: Sequence[int]) -> Tensor:
    """(T, S, ...) -> of task t the entry places[t], (T, ...)."""
    return torch.stack([of[place] for of, place in zip(by_task, places, strict=True)])


def _groups(wanted: Mapping[str, str] | None, tasks: Sequence[str]) -> list[str]:
    """Each task's group, by a name that no task has.

    Raises:
        ValueError: a task without a group, or a group of something else than a task.
    """
    groups = dict.fromkeys(tasks, "all") if wanted is None else wanted
    if odd := set(groups) ^ set(tasks):
        raise ValueError(
            f"task_groups: {', '.join(sorted(odd))}: not in both the groups and the tasks; "
            f"allowed: a group for each of {', '.join(tasks)}"
        )
    return [f"group {groups[task]}" for task in tasks]
