"""The Gram matrix of parameter gradients: T gradients of all that tasks share, then one update.

This is what gradient-balancing methods such as MGDA (Sener and Koltun, NeurIPS 2018) are defined
on; it costs T passes through the shared part per step.

B rows of the local batch, F features, D embedding dimension, T tasks, W ranks, P shared dense
weights. Gradients are those of the global batch's mean losses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.balancing.fork import BalancedFork
from stem_torchrec.balancing.gradients import inner_products
from stem_torchrec.distributed.balance_rows import RowGradients
from stem_torchrec.distributed.dense_step import RankMean


class ParameterBalance(nn.Module):
    """Between losses and backward: T gradients on one graph, their Gram matrix, the multipliers.

    The backward that follows is the ordinary one: the fork applies the multipliers, which by
    linearity is the combined gradient of every shared parameter. No table steps before it.

    Args:
        fork: the model's; it keeps the rule and hands out the shared features.
        shared: the dense weights that more than one task reaches.
        rows: collects the gradients of shared table rows; None for the dense weights alone.
        rank_mean: collective mean over ranks.
    """

    def __init__(
        self,
        fork: BalancedFork,
        shared: Sequence[nn.Parameter],
        rows: RowGradients | None,
        rank_mean: RankMean,
    ) -> None:
        super().__init__()
        self._fork = [fork]  # not a submodule: the model owns it
        self._shared = list(shared)
        self._rows = rows
        self._rank_mean = rank_mean

    def forward(self, losses: Tensor, sparse: KeyedJaggedTensor) -> Tensor:
        """(T,) losses as they came, after the multipliers are set. Collective."""
        fork = self._fork[0]
        if losses.requires_grad and fork.is_due:
            dense, features = self._task_gradients(losses, fork)
            gram = inner_products(self._rank_mean(dense)())
            if self._rows is not None:
                gram = gram + self._rows.gram(features, sparse)
            fork.set_from(gram, self._rank_mean(losses.detach())())
        return losses

    def _task_gradients(self, losses: Tensor, fork: BalancedFork) -> tuple[Tensor, Tensor]:
        """This rank's (T, P) gradients of weights and (T, B, I) of the shared features."""
        inputs = [*self._shared, fork.features]
        by_task = []
        for task, loss in enumerate(losses):
            with fork.only(task):
                by_task.append(
                    torch.autograd.grad(loss, inputs, retain_graph=True, materialize_grads=True)
                )
        dense = torch.stack([torch.cat([g.flatten() for g in part[:-1]]) for part in by_task])
        return dense, torch.stack([part[-1] for part in by_task])
