"""What every model is to the rest of the program, and the options that most models have.

B rows of the local batch, N dense features, T tasks, C_o columns of owner o's pooled features: the
sum of their embedding dimensions.
"""

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Le, Lt, MaxLen, MinLen
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.nn import owners as whose
from stem_torchrec.nn.decorrelation import Decorrelation
from stem_torchrec.nn.experts import ExpertKind
from stem_torchrec.nn.fork import Fork, PlainFork
from stem_torchrec.nn.initial import Initial
from stem_torchrec.nn.options import Options
from stem_torchrec.nn.owners import SHARED, Owners, Ownership

BOUNDARIES = ("pooled", "experts", "parameters", "dense_parameters")


class Model(nn.Module, abc.ABC):
    """Pooled features -> logits.

    A model of one's own derives from it, takes ``(inputs, options)``, sets ``owners`` and sends
    what its tasks share through ``fork``.

    Attributes:
        name: by which a run's ``model.name`` knows it; one outside the package needs none.
        options_type: the frozen dataclass of its options, whose fields are keys of a run's
            ``model`` section.
        owners: who has tables for which features.
        shared_owners: owners whose tables more than one task reaches; their pooled features, side
            by side in this order, are the first columns of what the fork parts. Empty where tasks
            share nothing.
        boundaries: where balancing can compare the tasks' gradients.
        same_role: beginnings of parameters' names -> those whose role they take: parts that do
            the same for different tasks, but lie apart.
        fork: parts the shared part into tasks.
        penalty: logits (B, T) -> what is added to each sample's loss (B, T); null for none.
        decorrelation: adds a loss that is no task's, of the pooled features; null for none.

    >>> class Logistic(Model):
    ...     def __init__(self, inputs, options=None):
    ...         super().__init__()
    ...         self.owners = {SHARED: inputs.names}
    ...         self.linear = nn.Linear(inputs.columns.width, len(inputs.tasks))
    ...
    ...     def forward(self, pooled, dense):
    ...         return self.linear(torch.cat([pooled[SHARED], dense], dim=1))
    ...
    ...     def shared_parameters(self):
    ...         return iter(())
    >>> import torch
    >>> model = Logistic(Inputs({"user_id": "user"}, dim=4, tasks=("click", "like")))
    >>> model({"shared": torch.randn(5, 4)}, torch.empty(5, 0)).shape
    torch.Size([5, 2])
    """

    name: str
    options_type: ClassVar[type[Any]] = Options
    shared_owners: tuple[str, ...] = (SHARED,)
    boundaries: tuple[str, ...] = BOUNDARIES
    same_role: ClassVar[Mapping[str, str]] = {}
    owners: Owners
    penalty: nn.Module | None
    decorrelation: Decorrelation | None

    def __init__(self) -> None:
        super().__init__()
        self.fork: Fork = PlainFork()
        self.penalty = None
        self.decorrelation = None

    @abc.abstractmethod
    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Pooled features by owner, (B, C_o), and dense features (B, N) -> logits (B, T)."""

    @abc.abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Dense weights below the fork."""

    def ownership(self) -> dict[str, Ownership]:
        """Whose every parameter is, by its name."""
        return {
            name: of._replace(role=self._role(of.role))
            for name, of in whose.ownership(self).items()
        }

    def _role(self, role: str) -> str:
        for beginning, other in self.same_role.items():
            if role.startswith(f"{beginning}."):
                return other + role.removeprefix(beginning)
        return role


MAX_EXPERTS = 4096
MAX_DEPTH = 64
"""Layers within a perceptron, and of experts and gates."""

Widths = tuple[Annotated[int, Ge(1), Le(1 << 20)], ...]
"""Units of the layers of a perceptron."""


@dataclass(frozen=True)
class DeepOptions(Options):
    """Options of models that are perceptrons alone.

    Raises:
        ValueError: ``FIELD: value; allowed: ...``.

    >>> DeepOptions(tower_widths=(64,)).expert_widths
    (128, 64)
    """

    expert_widths: Annotated[
        Widths, MinLen(1), MaxLen(MAX_DEPTH), Doc("units of an expert's layers")
    ] = (128, 64)
    tower_widths: Annotated[Widths, MaxLen(MAX_DEPTH), Doc("units of a tower's hidden layers")] = (
        64,
    )
    dropout: Annotated[float, Ge(0), Lt(1), Doc("dropout after each hidden layer, share")] = 0.0
    init: Annotated[
        Initial,
        Doc("first dense weights: xavier, normal with zero biases; uniform, as nn.Linear's"),
    ] = "xavier"


@dataclass(frozen=True)
class ExpertOptions(DeepOptions):
    """Options of models with experts.

    Raises:
        ValueError: ``FIELD: value; allowed: ...``.

    >>> ExpertOptions(expert="nfwfm").expert
    'nfwfm'
    """

    expert: Annotated[
        ExpertKind, Doc("an expert: a perceptron, or one on field-weighted interactions")
    ] = "mlp"


@dataclass(frozen=True)
class GatedOptions(ExpertOptions):
    """Options of models whose gates weigh shared experts.

    Raises:
        ValueError: ``FIELD: value; allowed: ...``.

    >>> GatedOptions(num_shared_experts=0)
    Traceback (most recent call last):
    ValueError: num_shared_experts: 0; allowed: an integer, at least 1, at most 4096
    """

    num_shared_experts: Annotated[
        int, Ge(1), Le(MAX_EXPERTS), Doc("shared experts per layer (M_s)")
    ] = 1
    gate_widths: Annotated[Widths, MaxLen(MAX_DEPTH), Doc("units of a gate's hidden layers")] = (
        64,
    )


@dataclass(frozen=True)
class ExtractionOptions(GatedOptions):
    """Options of models with experts of the tasks besides the shared ones.

    Raises:
        ValueError: ``FIELD: value; allowed: ...``; or no expert at all; or a second layer without
            a shared expert.

    >>> ExtractionOptions(num_shared_experts=0, num_task_experts=2).num_shared_experts
    0
    """

    num_shared_experts: Annotated[
        int, Ge(0), Le(MAX_EXPERTS), Doc("shared experts per layer (M_s)")
    ] = 1
    num_task_experts: Annotated[
        int, Ge(0), Le(MAX_EXPERTS), Doc("experts per task and layer (M_t)")
    ] = 1
    layers: Annotated[int, Ge(1), Le(MAX_DEPTH), Doc("stacked blocks of experts and gates")] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_shared_experts + self.num_task_experts == 0:
            raise ValueError("num_shared_experts and num_task_experts are both 0: nothing to gate")
        if self.layers > 1 and self.num_shared_experts == 0:
            raise ValueError("layers > 1 needs num_shared_experts >= 1 for the shared stream")


def numbered_experts(num: int) -> tuple[str, ...]:
    """Names of shared experts that are told apart: expert_0, expert_1, ..."""
    return tuple(f"expert_{k}" for k in range(num))
