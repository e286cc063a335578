"""What the dense part of a step computes and moves, counted on tensors without values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from stem_torchrec.nn import Model


class Operation(NamedTuple):
    """One kernel of the eager model.

    Attributes:
        flops: of matrix products, two per multiplication; 0 for all else.
        num_bytes: read and written.
    """

    flops: float
    num_bytes: float


def dense_operations(
    model: Model, pooled_widths: Mapping[str, int], num_dense: int, batch_size: int
) -> list[Operation]:
    """The operations of one forward and backward of a model on the meta device.

    Args:
        pooled_widths: by owner, the columns of its pooled features.
        num_dense: dense features.
        batch_size: B, rows of one rank.
    """
    pooled = {
        owner: torch.empty(batch_size, width, device="meta", requires_grad=True)
        for owner, width in pooled_widths.items()
    }
    dense = torch.empty(batch_size, num_dense, device="meta")
    with _Counter() as counter:
        logits = model(pooled, dense)
        loss = binary_cross_entropy_with_logits(logits, torch.empty_like(logits))
        inputs = [*pooled.values(), *model.parameters()]
        torch.autograd.grad(loss, inputs, allow_unused=True)
    return counter.operations


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not _is_free(func):
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count is not None else 0
            self.operations.append(Operation(flops, _num_bytes((args, kwargs, result))))
        return result


def _is_free(func: Any) -> bool:
    """Whether it moves nothing: a view, or memory that nobody has written yet."""
    name = func._overloadpacket.__name__
    if name.startswith(("empty", "new_empty")) or name in ("_unsafe_view", "detach"):
        return True
    aliases = [each.alias_info for each in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _num_bytes(values: Any) -> float:
    """Of all tensors; one that repeats its memory, as an expanded one does, counts it once."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
