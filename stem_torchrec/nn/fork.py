"""Where the shared part of a model parts into tasks: the place at which gradients are balanced.

B rows, T tasks; a trunk (the shared layers) maps the shared features x (B, I) to M outputs y
(M, B, H).
"""

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class GateGradient(NamedTuple):
    """Gradient of forked outputs in factors: task t's of output m is weights[t, :, m] * mixture[t].

    Attributes:
        weights: (T, B, M).
        mixture: (T, B, H).

    >>> GateGradient(torch.rand(2, 5, 3), torch.rand(2, 5, 4)).mixture.shape
    torch.Size([2, 5, 4])
    """

    weights: Tensor
    mixture: Tensor


class Handle(NamedTuple):
    """What a reader of the shared part holds: its features, and what the trunk makes of them.

    Each task has its own handle with the same values, so that its gradient can be told apart.

    Attributes:
        features: x.
        outputs: y.
        gates: where a gate that mixes the outputs leaves their gradient, giving autograd zeros;
            null: autograd takes it. One gate per task and nothing else may then read them.

    >>> Handle(torch.rand(5, 8), torch.rand(3, 5, 4)).outputs.shape
    torch.Size([3, 5, 4])
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

    >>> forked = PlainFork()(nn.Flatten(0, 0), torch.rand(5, 8), num_tasks=2)
    >>> forked.shared.features.shape, forked.tasks.features.shape
    (torch.Size([5, 8]), torch.Size([1, 5, 8]))
    """

    shared: Handle
    tasks: Handle


class Fork(Protocol):
    """Runs the trunk once and gives each of T tasks a handle on its input and output.

    A task reads shared values through its own entry alone, so that a fork sees each task's
    gradient of them apart.

    >>> fork: Fork = PlainFork()
    """

    def __call__(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked: ...


class PlainFork(nn.Module):
    """All tasks read one handle: their gradients add up, as without any balancing.

    >>> experts = BatchedMlp(3, 8, (4,))
    >>> PlainFork()(experts, torch.rand(5, 8), num_tasks=2).tasks.outputs.shape
    torch.Size([1, 3, 5, 4])
    """

    def forward(self, trunk: nn.Module, features: Tensor, num_tasks: int) -> Forked:
        return plain(features, trunk(features))


def plain(features: Tensor, outputs: Tensor) -> Forked:
    """The same values for everybody: x (B, I) and y (M, B, H) as they are."""
    one = Handle(features.unsqueeze(0), outputs.unsqueeze(0))
    return Forked(Handle(features, outputs), one)
