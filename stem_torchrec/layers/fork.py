"""Where the shared part of a model parts into tasks.

B rows, T tasks; a trunk maps the shared features x (B, I) to outputs y (M, B, H).
"""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Handle(NamedTuple):
    """Shared features and what the trunk makes of them.

    Attributes:
        features: x.
        outputs: y.
    """

    features: Tensor
    outputs: Tensor


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
        return plain(Handle(features, trunk(features)))


def plain(shared: Handle) -> Forked:
    """The same values for everybody."""
    return Forked(shared, Handle(*(part.unsqueeze(0) for part in shared)))
