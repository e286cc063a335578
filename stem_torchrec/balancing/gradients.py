"""The tasks' gradients at a fork, whole or in factors.

B rows of the local batch, T tasks, M trunk outputs of width H.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stem_torchrec.nn.exact import exact, float32_products
from stem_torchrec.nn.fork import GateGradient
from stem_torchrec.nn.gates import weighted_sums
from stem_torchrec.nn.mlp import num_parts


class TaskGradients(Protocol):
    """T gradients of one value."""

    def inner_products(self) -> Tensor:
        """(T, T) over all rows of the local batch."""
        ...

    def rows(self, number: int) -> Tensor:
        """(T, ..., number, H) of the first rows."""
        ...

    def taking_part(self, multipliers: Tensor) -> "TaskGradients":
        """The same, 0 for a task with a_t = 0: one that is NaN then leaves no trace in a sum."""
        ...

    def combined(self, multipliers: Tensor) -> Tensor:
        """sum_t a_t g_t."""
        ...

    def sizes(self) -> Tensor:
        """(T,) sums of absolute values, or more; not finite where a value is not, 0 without any."""
        ...


class Gradients(NamedTuple):
    """Each task's gradient at the fork.

    Attributes:
        features: of the shared features, which the gates and the tasks' inputs read.
        outputs: of the trunk's outputs.
    """

    features: TaskGradients
    outputs: TaskGradients


class Whole:
    """Gradients (T, ..., B, H) as autograd makes them."""

    def __init__(self, gradients: Tensor) -> None:
        self._gradients = gradients

    def inner_products(self) -> Tensor:
        return inner_products(self._gradients)

    def rows(self, number: int) -> Tensor:
        return self._gradients[..., :number, :]

    def taking_part(self, multipliers: Tensor) -> "Whole":
        return Whole(taking_part(self._gradients, multipliers))

    def combined(self, multipliers: Tensor) -> Tensor:
        flat = exact(self._gradients.flatten(start_dim=1))
        with float32_products():
            combined = multipliers.to(flat.dtype) @ flat
        return combined.view(self._gradients.shape[1:]).to(self._gradients.dtype)

    def sizes(self) -> Tensor:
        return _sizes(self._gradients)


class Factored:
    """Gradients (T, M, B, H) through a gate: expert m's is the gate's weight times the mixture's.

    Products, sums and memory are those of (T, B, H): multiplying out would cost M times as much.
    """

    def __init__(self, factors: GateGradient) -> None:
        self._weights, self._mixture = factors

    def inner_products(self) -> Tensor:
        weights, mixture = (part.transpose(0, 1) for part in (self._weights, self._mixture))
        return (_products(weights) * _products(mixture)).sum(dim=0)

    def rows(self, number: int) -> Tensor:
        weights = self._weights[:, :number].transpose(1, 2).unsqueeze(-1)
        return (weights * self._mixture[:, None, :number]).to(self._mixture.dtype)

    def taking_part(self, multipliers: Tensor) -> "Factored":
        parts = (taking_part(part, multipliers) for part in (self._weights, self._mixture))
        return Factored(GateGradient(*parts))

    def combined(self, multipliers: Tensor) -> Tensor:
        weights = self._weights * multipliers.view(-1, 1, 1)
        return weighted_sums(weights.permute(2, 1, 0), [self._mixture])

    def sizes(self) -> Tensor:
        return _sizes(self._weights) * _sizes(self._mixture)


def inner_products(gradients: Tensor, parts: int | None = None) -> Tensor:
    """(T, ...) -> (T, T), in float32 at least.

    Args:
        parts: in which the numbers of a gradient are gone through, side by side: all of them are
            one tile for a GPU's matrix product, through which it walks alone. As many as suit the
            device if None.
    """
    flat = gradients.flatten(start_dim=1)
    if parts is None:
        parts = num_parts(flat.shape[1]) if flat.is_cuda else 1
    return _products(flat.unflatten(1, (parts, -1)).transpose(0, 1)).sum(dim=0)


def taking_part(gradients: Tensor, multipliers: Tensor) -> Tensor:
    """(T, ...) gradients, 0 for tasks with multiplier 0."""
    left_out = multipliers == 0
    # On a CPU looking costs nothing, and a pass over all gradients does; a GPU would have to wait.
    if left_out.device.type == "cpu" and not left_out.any():
        return gradients
    return gradients.masked_fill(left_out.view(-1, *[1] * (gradients.dim() - 1)), 0.0)


def _sizes(values: Tensor) -> Tensor:
    """(T, ...) -> (T,) sums of absolute values, in float32 at least."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return torch.linalg.vector_norm(values.flatten(start_dim=1), 1, dim=1, dtype=dtype)


def _products(values: Tensor) -> Tensor:
    """(N, T, K) -> (N, T, T) inner products over K, in float32 at least."""
    if values.is_cuda and values.dtype == torch.bfloat16:  # summed in float32 without a copy in it
        return torch.bmm(values, values.transpose(1, 2), out_dtype=torch.float32)
    values = exact(values)
    with float32_products():
        return torch.bmm(values, values.transpose(1, 2))
