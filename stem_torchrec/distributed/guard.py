"""Numbers are looked at before any weight is touched: a bad step is left out on all ranks."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torchrec.distributed.model_parallel import DistributedModelParallel

from stem_torchrec.batch import Batch
from stem_torchrec.distributed.cut import Cut
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.optim import Optimizers
from stem_torchrec.recommender import StepOutput


class GuardedStep:
    """The optimizer that the train pipeline knows: checks, then updates everything or nothing.

    The pipeline's backward stops above the tables (``Cut``). ``step`` looks at the losses, the
    gradients of the pooled features and those of the dense weights: if one of them is not finite
    on any rank, no rank's table, dense weight or optimizer state changes. Else the backward goes
    on into the tables, and the other optimizers step.

    It costs a pass over those gradients, one all-reduce of one number, and a wait for the device:
    whether the tables' backward runs is decided on the host.

    Attributes:
        skipped: whether the last step was left out.
        losses: (T,) local losses of the last step.
    """

    losses: Tensor

    def __init__(
        self, model: DistributedModelParallel, optimizers: Optimizers, ranks: Ranks
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._ranks = ranks
        self._cut: Cut = model.module.recommender.embeddings.cut
        self._cut.active = True
        self.skipped = False

    def forward(self, batch: Batch | None) -> tuple[Tensor, StepOutput]:
        """The model's, for the pipeline to call."""
        losses, output = self._model(batch)
        self.losses = output.losses
        return losses, output

    def zero_grad(self, *arguments: Any, **options: Any) -> None:
        self._optimizers.stepped.zero_grad(*arguments, **options)

    def step(self) -> None:
        """Update every weight, or none. Collective."""
        self.skipped = self._ranks.any(~self._finite())
        if self.skipped:
            self._cut.drop()
            return
        self._cut.backward()
        self._optimizers.stepped.step()

    @torch.no_grad()
    def _finite(self) -> Tensor:
        """() bool: this rank's losses and gradients are."""
        dense = [weight.grad for weight in self._optimizers.dense if weight.grad is not None]
        parts = [part for part in (self.losses, *self._cut.gradients(), *dense) if part.numel() > 0]
        # The largest absolute value: one read of each, and not finite if one element is not.
        return get_total_norm(parts, float("inf")).isfinite()
