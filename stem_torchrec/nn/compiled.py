"""torch.compile for the parts of a model whose work is products and pointwise steps in a row."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from stem_torchrec.nn.experts import FieldWeightedExperts
from stem_torchrec.nn.fork import PlainFork
from stem_torchrec.nn.gates import Gates
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.model import Model
from stem_torchrec.nn.towers import Towers

PARTS = (BatchedMlp, FieldWeightedExperts, Gates, Towers)
"""Experts, gates and towers: shapes follow from their input's, and nothing in them is looked at."""

_SHAPES_OF_A_PART = 8


def compile_model(model: Model, **options: Any) -> None:
    """Compile a model for training, in place: whole if no fork balances its tasks, else in parts.

    As a whole it is one graph, so that mixtures and what surrounds the products take one pass; a
    model of one's own may be more.

    Args:
        options: of ``torch.compile``.

    >>> from stem_torchrec.nn import Inputs
    >>> from stem_torchrec.nn.models.mmoe import Mmoe, MmoeOptions
    >>> model = Mmoe(Inputs({"user": "user"}, 4, ("click", "like")), MmoeOptions())
    >>> compile_model(model, backend="eager")
    """
    if not isinstance(model.fork, PlainFork):
        compile_parts(model, **options)
        return
    compiled = torch.compile(model.forward, **options)
    model.forward = _in_training(model, compiled, model.forward)  # type: ignore[method-assign]


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
    def forward(*inputs: Any) -> Tensor:
        return (compiled if part.training and torch.is_grad_enabled() else plain)(*inputs)

    return forward
