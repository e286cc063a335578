"""torch.compile for the parts of a model whose work is products and pointwise steps in a row."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.nn.experts import FieldWeightedExperts
from stem_torchrec.nn.gates import Gates
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.towers import Towers

PARTS = (BatchedMlp, FieldWeightedExperts, Gates, Towers)
"""Experts, gates and towers: shapes follow from their input's, and nothing in them is looked at."""

_SHAPES_OF_A_PART = 8


def compile_parts(model: nn.Module, **options: Any) -> list[str]:
    """Compile a model's experts, gates and towers for training, in place; names of the parts.

    What lies between them, forks and mixtures with backwards of their own, stays as it is, and so
    do parts in evaluation mode or without gradients: those are called with other numbers of rows.
    Nothing else changes, names of weights neither. A part is one graph; what would break it is an
    error.

    Args:
        options: of ``torch.compile``.

    >>> compile_parts(nn.Sequential(BatchedMlp(2, 8, (4,)), nn.Flatten()), backend="eager")
    ['0']
    """
    parts = dict(_outermost(model, ""))
    # Parts of one class share a limit of versions, one for each shape and settings.
    limit = _SHAPES_OF_A_PART * (1 + len(parts))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for part in parts.values():
        compiled = torch.compile(part.forward, fullgraph=True, **options)
        part.forward = _in_training(part, compiled, part.forward)  # type: ignore[method-assign]
    return list(parts)


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, PARTS):
        yield name, module
        return
    for child, part in module.named_children():
        yield from _outermost(part, f"{name}.{child}".removeprefix("."))


def _in_training(
    part: nn.Module, compiled: Callable[..., Tensor], plain: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def forward(*inputs: Tensor) -> Tensor:
        return (compiled if part.training and torch.is_grad_enabled() else plain)(*inputs)

    return forward
