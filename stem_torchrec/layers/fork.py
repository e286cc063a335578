"""Where the shared part of a model parts into tasks.

B rows, T tasks; a trunk maps the shared features x (B, I) to outputs y (M, B, H).
"""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Handle(NamedTuple):
    """What one task reads of the shared part.

    Attributes:
        features: (B, I), the values of x.
        outputs: (M, B, H), the values of y.
    """

    features: Tensor
    outputs: Tensor


class Forked(NamedTuple):
    """The shared part after a fork.

    Attributes:
        shared: the values themselves, for parts of the model that belong to no task.
        tasks: T handles of the same values.
    """

    shared: Handle
    tasks: list[Handle]


class Fork(Protocol):
    """Runs the trunk once and gives each of T tasks a handle on its input and output.

    A task reads shared values through its own handle alone, so that a fork sees each task's
    gradient of them apart.
    """

    def __call__(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked: ...


class PlainFork(nn.Module):
    """All tasks have one handle: their gradients add up, as without any balancing."""

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        handle = Handle(features, trunk(features))
        return Forked(handle, [handle] * num_tasks)
