"""Weights that the user chose."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from typing_extensions import Doc

from stem_torchrec.balancing.from_host import from_host
from stem_torchrec.balancing.rule import Rule, Situation, State
from stem_torchrec.nn.options import MAX_FACTOR, Options


@dataclass(frozen=True)
class StaticOptions(Options):
    """Settings of ``static``.

    Attributes:
        weights: one per task, finite, not negative, and not all of them 0.
    """

    weights: Annotated[
        tuple[Annotated[float, Ge(0), Le(MAX_FACTOR)], ...] | None, Doc("one weight per task")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weights:
            raise ValueError(f"weights: {self.weights}; allowed: numbers >= 0, one per task")
        if not any(self.weights):
            raise ValueError("weights: all are 0; allowed: at least one above 0")


class StaticRule(Rule[StaticOptions]):
    """α_t = the given weight of task t."""

    name = "static"
    options_type = StaticOptions
    needs_gram = False

    def __init__(self, options: StaticOptions | None = None, *, seed: int = 0) -> None:
        super().__init__(options, seed=seed)
        self._weights = self.options.weights or ()
        self._on_device: Tensor | None = None

    def check(self, num_tasks: int) -> None:
        """One weight per task."""
        if len(self._weights) != num_tasks:
            raise ValueError(
                f"weights: {len(self._weights)} weights; allowed: {num_tasks}, one per task"
            )

    def multipliers(self, situation: Situation, state: State, step: int) -> tuple[Tensor, State]:
        """(T,) the weights."""
        gram = situation.gram
        if self._on_device is None or self._on_device.device != gram.device:
            weights = torch.tensor(self._weights, dtype=gram.dtype)
            self._on_device = from_host(weights, gram.device)
        return self._on_device, state
