"""Where the shared part of a model parts into tasks.

B rows, T tasks; a trunk maps the shared features x (B, I) to M outputs y (M, B, H).
"""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class GateGradient(NamedTuple):
    """Gradient of forked outputs in factors: task t's of output m is weights[t, :, m] * mixture[t].

    Attributes:
        weights: (T, B, M).
        mixture: (T, B, H).
    """

    weights: Tensor
    mixture: Tensor


class Handle(NamedTuple):
    """Shared features and what the trunk makes of them.

    Attributes:
        features: x.
        outputs: y.
        gates: where a gate that mixes the outputs leaves their gradient, giving autograd zeros;
            null: autograd takes it. One gate per task and nothing else may then read them.
    """

    features: Tensor
    outputs: Tensor
    gates: list[GateGradient] | None = None


class Forked(NamedTuple):
    """The shared part after a fork.

    Attributes:
        shared: x (B, I) and y (M, B, H), for parts of the model that belong to no task.
        tasks: the same as each task reads them, (T, B, I) and (T, M, B, H); of size 1 in the
            first dimension where all tasks read one.
    """

    shared: Handle
    tasks: Handle


class Fork(Protocol):
    """Runs the trunk once and gives each of T tasks a handle on its input and output.

    A task reads shared values through its own entry alone, so that a fork sees each task's
    gradient of them apart.
    """

    def __call__(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked: ...


class PlainFork(nn.Module):
    """All tasks read one handle: their gradients add up, as without any balancing."""

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        return plain(features, trunk(features))


def plain(features: Tensor, outputs: Tensor) -> Forked:
    """The same values for everybody."""
    one = Handle(features.unsqueeze(0), outputs.unsqueeze(0))
    return Forked(Handle(features, outputs), one)
