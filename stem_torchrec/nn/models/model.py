"""What every model is to the rest of the program.

B rows of the local batch, F_o features of owner o, D embedding dimension, N dense features, T
tasks.
"""

import abc
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.embeddings import SHARED, Owners
from stem_torchrec.errors import UserError
from stem_torchrec.nn.fork import Fork, PlainFork

BOUNDARIES = ("pooled", "experts", "parameters", "dense_parameters")


class Model(nn.Module, abc.ABC):
    """Pooled features -> logits.

    Attributes:
        settings: keys of the ``model`` section that it reads.
        owners: who has tables for which features.
        shared_owners: owners whose tables more than one task reaches; their pooled features, side
            by side in this order, are the first columns of what the fork parts. Empty where tasks
            share nothing.
        boundaries: where balancing can compare the tasks' gradients.
        fork: parts the shared part into tasks.
        penalty: logits (B, T) -> what is added to each sample's loss (B, T); null for none.
    """

    settings: ClassVar[frozenset[str]]
    owners: Owners
    shared_owners: tuple[str, ...] = (SHARED,)
    boundaries: tuple[str, ...] = BOUNDARIES
    penalty: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.fork: Fork = PlainFork()
        self.penalty = None

    @abc.abstractmethod
    def forward(self, pooled: dict[str, Tensor], dense: Tensor) -> Tensor:
        """Pooled features by owner, (B, F_o * D), and dense features (B, N) -> logits (B, T)."""

    @abc.abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Dense weights below the fork."""


NETWORK = frozenset({"name", "expert", "expert_widths", "tower_widths", "dropout"})
"""Settings of nearly every model."""

GATED = NETWORK | {"num_shared_experts", "gate_widths"}
"""Settings of models with gates."""


def require_shared_experts(config: ModelConfig) -> None:
    """Raise UserError if there is no shared expert."""
    if config.num_shared_experts == 0:
        raise UserError(
            f"model.num_shared_experts: 0 with model.name {config.name}; allowed: at least 1"
        )


def numbered_experts(config: ModelConfig) -> tuple[str, ...]:
    """Names of shared experts that are told apart: expert_0, expert_1, ..."""
    return tuple(f"expert_{k}" for k in range(config.num_shared_experts))
