"""Weights that the user chose."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.errors import UserError


class Static(Rule):
    """α_t = the given weight of task t.

    Raises:
        UserError: no weight, one that is negative or not finite, or all of them 0.
    """

    def __init__(self, weights: Sequence[float] | None) -> None:
        self._weights = tuple(float(weight) for weight in weights or ())
        if not self._weights or any(not math.isfinite(w) or w < 0 for w in self._weights):
            raise UserError(
                f"balance.weights: {list(self._weights)}; "
                "allowed: finite numbers >= 0, one per task"
            )
        if not any(self._weights):
            raise UserError("balance.weights: all are 0; allowed: at least one above 0")
        self._on_device: Tensor | None = None

    def check(self, num_tasks: int) -> None:
        """One weight per task."""
        if len(self._weights) != num_tasks:
            raise UserError(
                f"balance.weights: {len(self._weights)} weights; allowed: {num_tasks}, one per task"
            )

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) the weights."""
        gram = situation.gram
        # Copied once: a copy from host memory each step would wait for the device.
        if self._on_device is None or self._on_device.device != gram.device:
            self._on_device = torch.tensor(self._weights, dtype=gram.dtype, device=gram.device)
        return self._on_device, state
