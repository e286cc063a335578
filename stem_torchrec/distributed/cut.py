"""A cut in a step's graph, above the tables: their backward runs apart, or not at all."""

import torch
from torch import Tensor, nn


class Cut(nn.Module):
    """Identity on the pooled features; while ``active``, it ends the graph of a train step.

    The backward of the losses then stops here, and no fused table has stepped. ``backward`` goes
    on into the tables, with the numbers that one backward would have brought; ``drop`` leaves the
    tables as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def forward(self, pooled: dict[str, Tensor]) -> dict[str, Tensor]:
        """By owner, (B, F_o * D)."""
        if not (self.active and torch.is_grad_enabled()):
            return pooled
        above = {owner: features.detach().requires_grad_() for owner, features in pooled.items()}
        self._pairs = [(pooled[owner], above[owner]) for owner in pooled]
        return above

    def gradients(self) -> list[Tensor]:
        """What the losses' backward brought, of each owner that it reached."""
        return [above.grad for _, above in self._pairs if above.grad is not None]

    def backward(self) -> None:
        """Take the gradients on into the tables, which step if they are fused. Collective."""
        reached = [(below, above) for below, above in self._pairs if above.grad is not None]
        self._pairs = []
        if reached:
            torch.autograd.backward(
                [below for below, _ in reached], [above.grad for _, above in reached]
            )

    def drop(self) -> None:
        """Forget the step."""
        self._pairs = []
