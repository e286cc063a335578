"""A penalty where two owners' embeddings of a feature vary together.

B rows of the local batch, D_f embedding dimension of feature f, C_o columns of owner o: the sum of
its features' D_f.
"""

from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from typing_extensions import Doc

from stem_torchrec.nn.exact import exact
from stem_torchrec.nn.inputs import side_by_side
from stem_torchrec.nn.options import MAX_FACTOR
from stem_torchrec.nn.owners import Owners

DecorrelationWeight = Annotated[
    float,
    Ge(0),
    Le(MAX_FACTOR),
    Doc("weight of the penalty on owners' embeddings that vary together; 0: none"),
]


class _Pair(NamedTuple):
    """Features of one width D that two owners have.

    Attributes:
        share: of all features that both have.
        of_one, of_other: their columns among each owner's.
    """

    one: str
    other: str
    share: float
    of_one: list[range]
    of_other: list[range]


class Decorrelation(nn.Module):
    """Mean absolute covariance of the pooled features of each two owners, times a weight.

    After the covariance loss of Crocodile (Lin et al., 2024, arXiv 2405.12706), which disentangles
    the embeddings of several tables: |cov(e^p, e^q)|_1 / d^2 over pairs of them. Departures:
    covariances are of one feature's D columns with the same feature's, not of all with all, and
    their mean over features is taken, so that the cost grows with the sum of D_f^2 and the weight
    means the same for any number of features; and they are divided by the number of rows, so that
    it means the same for any batch.

    Args:
        owners: of tables. A pair counts with the features that both have.
        widths: feature -> D_f.
        weight: of the penalty.

    Raises:
        ValueError: no feature has tables of two owners.

    >>> owners = {"shared": ("user_id", "item_id"), "click": ("item_id",)}
    >>> penalty = Decorrelation(owners, {"user_id": 1, "item_id": 1}, weight=2.0)
    >>> click = torch.tensor([[1.0], [3.0]])
    >>> pooled = {"shared": torch.cat([torch.rand(2, 1), -click], dim=1), "click": click}
    >>> penalty(pooled, torch.ones(2))  # the covariance of 1, 3 with -1, -3 is -1
    tensor(2.)
    """

    def __init__(self, owners: Owners, widths: Mapping[str, int], weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.pairs = _pairs(owners, widths)
        if not self.pairs:
            raise ValueError(
                f"decorrelation: {weight}, but no two owners have one feature's tables"
            )

    def forward(self, pooled: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """Pooled features (B, C_o) and which rows count, (B,) of 0 and 1 -> () penalty.

        Covariances are of the local batch alone; none counts: 0.
        """
        share = rows / rows.sum().clamp(min=1)
        centred = {owner: _centred(exact(part), share) for owner, part in pooled.items()}
        total = share.new_zeros(())
        for pair in self.pairs:
            first = _picked(centred[pair.one], pair.of_one) * share[:, None, None]
            other = _picked(centred[pair.other], pair.of_other)
            covariances = torch.einsum("bfi,bfj->fij", first, other)
            total = total + pair.share * covariances.abs().mean()
        return self.weight * total


def _pairs(owners: Owners, widths: Mapping[str, int]) -> list[_Pair]:
    """Of every two owners, for each width of the features that both have."""
    places = {
        owner: dict(zip(names, side_by_side(widths[name] for name in names), strict=True))
        for owner, names in owners.items()
    }
    found = []
    for one, other in combinations(owners, 2):
        both = [name for name in places[one] if name in places[other]]
        for width in dict.fromkeys(widths[name] for name in both):
            names = [name for name in both if widths[name] == width]
            columns = ([places[owner][name] for name in names] for owner in (one, other))
            found.append(_Pair(one, other, len(names) / len(both), *columns))
    return found


def _centred(features: Tensor, share: Tensor) -> Tensor:
    """(B, C_o) less its mean over the rows that count."""
    return features - torch.einsum("b,bi->i", share, features)


def _picked(features: Tensor, places: list[range]) -> Tensor:
    """n features of one width D of (B, C_o), (B, n, D); indexing by a list would wait for a GPU."""
    if all(one.stop == after.start for one, after in pairwise(places)):
        return features[:, places[0].start : places[-1].stop].unflatten(1, (len(places), -1))
    return torch.stack([features[:, place.start : place.stop] for place in places], dim=1)


def decorrelation(owners: Owners, widths: Mapping[str, int], weight: float) -> Decorrelation | None:
    """The penalty; null where its weight is 0.

    Raises:
        ValueError: as ``Decorrelation`` does.

    >>> decorrelation({"shared": ("user_id",)}, {"user_id": 4}, weight=0.0)
    """
    return Decorrelation(owners, widths, weight) if weight > 0 else None
