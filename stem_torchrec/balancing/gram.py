"""The local part of the tasks' Gram matrix, by boundary.

B rows of the local batch, T tasks; a trunk maps shared features x (B, I) to outputs y (M, B, H).
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from stem_torchrec.balancing.gradients import Gradients, inner_products
from stem_torchrec.nn.mlp import BatchedMlp


class Gram(Protocol):
    """This rank's part (T, T) of the Gram matrix; the sum over ranks is the global one."""

    def __call__(self, trunk: nn.Module, features: Tensor, gradients: Gradients) -> Tensor: ...


class ExpertsGram:
    """Gradients at the fork itself: the shared experts' outputs with the gates' shared input."""

    def __call__(self, trunk: nn.Module, features: Tensor, gradients: Gradients) -> Tensor:
        return gradients.features.inner_products() + gradients.outputs.inner_products()


class NoGram:
    """For rules that read no products: a diagonal that says which tasks have a finite gradient.

    Costs one read of the gradients at the fork.
    """

    def __call__(self, trunk: nn.Module, features: Tensor, gradients: Gradients) -> Tensor:
        return torch.diag(gradients.features.sizes() + gradients.outputs.sizes())


class PooledGram:
    """Gradients of the pooled features of the shared tables (MultiBalance, Meta 2024).

    The T gradients at the fork are pulled through the trunk for the first ``rows`` rows of the
    local batch alone: rows are shuffled, and the matrix is scaled up to the whole batch. With
    ``rows`` null it is exact. Dropout of the trunk is left out. A gradient that is not finite in
    other rows is not seen here: it goes on, and the step is left out.

    Args:
        width: columns of x that are pooled features; the rest are dense features.
        rows: rows of the local batch in use; all if null.
    """

    def __init__(self, width: int, rows: int | None) -> None:
        self._width = width
        self._rows = rows

    def __call__(self, trunk: nn.Module, features: Tensor, gradients: Gradients) -> Tensor:
        batch = len(features)
        rows = min(batch, self._rows or batch)
        pulled = _pull(trunk, features[:rows], gradients.outputs.rows(rows))
        pooled = pulled + gradients.features.rows(rows)
        gram = inner_products(pooled[..., : self._width])
        return gram if rows == batch else gram * (batch / rows)


def _pull(trunk: nn.Module, features: Tensor, at_outputs: Tensor) -> Tensor:
    """(T, B, I) gradients of the trunk's input from (T, M, B, H) ones of its output.

    One forward; a backward per task, or one for all through perceptrons; no weight gets a gradient.
    """
    if isinstance(trunk, BatchedMlp):
        return trunk.input_gradients(features, at_outputs)
    training = trunk.training
    trunk.eval()
    lowered = at_outputs.dtype == torch.bfloat16  # as the outputs were that they are gradients of
    autocast = torch.autocast(features.device.type, torch.bfloat16, enabled=lowered)
    with torch.enable_grad(), autocast:
        features = features.detach().requires_grad_()
        outputs = trunk(features)
        pulled = [
            torch.autograd.grad(outputs, features, of_task, retain_graph=True)[0]
            for of_task in at_outputs
        ]
    trunk.train(training)
    return torch.stack(pulled)
