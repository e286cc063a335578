"""Ids -> losses and all gradients of a step. Nothing is changed yet.

B rows of the local batch, C columns of the tables' sums: those of all owners and features.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from stem_torchrec.data.batch import Batch
from stem_torchrec.distributed.dense_step import Dense, DenseOutput
from stem_torchrec.distributed.embeddings import OwnerEmbeddings
from stem_torchrec.distributed.ranks import Ranks
from stem_torchrec.distributed.verdict import known_unset


class Gradients(NamedTuple):
    """What a step is to change tables and weights by.

    Attributes:
        sums: (B, C) as the tables gave them; a backward from here steps the fused tables.
        to_sums: (B, C) their gradient, clipped and with decay; zeros in a step that is left out,
            whatever has been found.
        dense: losses, logits and the gradients of dense weights.
        skipped: () bool on the device: a loss or gradient was not finite on some rank.
    """

    sums: Tensor
    to_sums: Tensor
    dense: DenseOutput
    skipped: Tensor


class ForwardBackward:
    """Lookup, dense step, verdict, and the way back to where the tables' backward begins.

    Losses, the gradients of the pooled features and those of the dense weights are looked at: if
    one is not finite on any rank, the step is to be left out on all. That costs a pass over them
    and one all-reduce of one number, and is decided on the device.
    """

    def __init__(self, embeddings: OwnerEmbeddings, dense_step: Dense, ranks: Ranks) -> None:
        self._embeddings = embeddings
        self.dense_step = dense_step
        self._ranks = ranks

    def __call__(self, batch: Batch) -> Gradients:
        """Collective."""
        return self.from_sums(self.look_up(batch.sparse), batch)

    def look_up(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        """Sums over bags, whose graph reaches the tables. Collective."""
        return self._embeddings.sums(sparse)

    def from_sums(self, sums: KeyedTensor, batch: Batch) -> Gradients:
        """What follows the lookup. Collective."""
        begin = sums.values().detach().requires_grad_()
        own = KeyedTensor(sums.keys(), sums.length_per_key(), begin)
        pooled = self._embeddings.by_owner(own, batch.sparse)
        dense = self.dense_step(pooled, batch)
        skipped = self._ranks.any(~dense.is_finite())
        adjust = self._embeddings.adjust_gradient
        reached = [pooled[owner] for owner in dense.pooled]
        adjusted = [adjust(g, e) for g, e in zip(dense.pooled.values(), reached, strict=True)]
        (to_sums,) = torch.autograd.grad(reached, begin, adjusted)
        if not known_unset(skipped):
            to_sums = torch.where(skipped, 0.0, to_sums)
        return Gradients(sums.values(), to_sums, dense, skipped)
