"""A penalty where two owners' embeddings of a feature vary together.

B rows of the local batch, F_o features of owner o, D embedding dimension.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.nn.exact import exact
from stem_torchrec.nn.options import MAX_FACTOR
from stem_torchrec.nn.owners import Owners

DecorrelationWeight = Annotated[
    float,
    Ge(0),
    Le(MAX_FACTOR),
    Doc("weight of the penalty on owners' embeddings that vary together; 0: none"),
]


class Decorrelation(nn.Module):
    """Mean absolute covariance of the pooled features of each two owners, times a weight.

    After the covariance loss of Crocodile (Lin et al., 2024, arXiv 2405.12706), which disentangles
    the embeddings of several tables: |cov(e^p, e^q)|_1 / d^2 over pairs of them. Departures:
    covariances are of one feature's D columns with the same feature's, not of all with all, and
    their mean over features is taken, so that the cost grows with F * D^2 and the weight means the
    same for any number of features; and they are divided by the number of rows, so that it means
    the same for any batch.

    Args:
        owners: of tables. A pair counts with the features that both have.
        dim: D.
        weight: of the penalty.

    Raises:
        ValueError: no feature has tables of two owners.

    >>> owners = {"shared": ("user_id", "item_id"), "click": ("item_id",)}
    >>> penalty = Decorrelation(owners, dim=1, weight=2.0)
    >>> click = torch.tensor([[1.0], [3.0]])
    >>> pooled = {"shared": torch.cat([torch.rand(2, 1), -click], dim=1), "click": click}
    >>> penalty(pooled, torch.ones(2))  # the covariance of 1, 3 with -1, -3 is -1
    tensor(2.)
    """

    def __init__(self, owners: Owners, dim: int, weight: float) -> None:
        super().__init__()
        self.dim, self.weight = dim, weight
        self.pairs = [
            (p, q, [owners[p].index(name) for name in both], [owners[q].index(n) for n in both])
            for p, q in combinations(owners, 2)
            if (both := [name for name in owners[p] if name in owners[q]])
        ]
        if not self.pairs:
            raise ValueError(
                f"decorrelation: {weight}, but no two owners have one feature's tables"
            )

    def forward(self, pooled: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Pooled features (B, F_o * D) and which rows count, (B,) of 0 and 1 -> () penalty.

        Covariances are of the local batch alone; none counts: 0.
        """
        share = rows / rows.sum().clamp(min=1)
        centred = {owner: self._centred(features, share) for owner, features in pooled.items()}
        total = share.new_zeros(())
        for p, q, of_p, of_q in self.pairs:
            first = _picked(centred[p], of_p) * share[:, None, None]
            covariances = torch.einsum("bfi,bfj->fij", first, _picked(centred[q], of_q))
            total = total + covariances.abs().mean()
        return self.weight * total

    def _centred(self, features: Tensor, share: Tensor) -> Tensor:
        """(B, F_o * D) less its mean over the rows that count -> (B, F_o, D)."""
        features = exact(features).unflatten(1, (-1, self.dim))
        return features - torch.einsum("b,bfi->fi", share, features)


def _picked(features: Tensor, places: list[int]) -> Tensor:
    """Some features of (B, F_o, D); indexing by a list would wait for a GPU."""
    if places == list(range(features.shape[1])):
        return features
    return torch.stack([features[:, place] for place in places], dim=1)


def decorrelation(owners: Owners, dim: int, weight: float) -> Decorrelation | None:
    """The penalty; null where its weight is 0.

    Raises:
        ValueError: as ``Decorrelation`` does.

    >>> decorrelation({"shared": ("user_id",)}, dim=4, weight=0.0)
    """
    return Decorrelation(owners, dim, weight) if weight > 0 else None
