"""K experts of one shape, by kind, as batched matrix products.

B rows, F features of dimension D_f, whose sum with the N dense features is I; experts of width H.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from stem_torchrec.nn.inputs import Columns
from stem_torchrec.nn.mlp import BatchedMlp
from stem_torchrec.nn.owners import Labels, Owned

ExpertKind = Literal["mlp", "nfwfm"]
"""A perceptron on the features side by side, or one on their weighted interactions."""


class FieldWeightedExperts(Owned):
    """K neural factorization machines with field-weighted interactions (NFwFM).

    Expert k is a perceptron on sum_{i<j} r_kij e_i * e_j (He and Chua, SIGIR 2017, equation 3) with
    a weight r per pair of features (Pan et al., WWW 2018, equation 6), followed by the dense
    features. The weights start at 1: the plain bi-interaction.

    Args:
        owners: whose each of the K experts is.
        columns: of the features.
        widths: layers of the perceptron; the last one is H.
        dropout: probability of dropping a hidden activation.

    Raises:
        ValueError: fewer than two features, or of different dimensions.

    >>> experts = FieldWeightedExperts(["shared:0", "shared:1"], Columns((4, 4, 4), 2), (8,))
    >>> experts(torch.randn(5, 14)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self, owners: Sequence[str], columns: Columns, widths: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        size = len(columns.widths)
        if size < 2:
            raise ValueError("expert: 'nfwfm' weights pairs of features; the data has one")
        if len(set(columns.widths)) > 1:
            raise ValueError(
                "expert: 'nfwfm' multiplies features column by column; allowed: features of one "
                f"embedding dimension, found {', '.join(map(str, sorted(set(columns.widths))))}"
            )
        self.owners, self.columns = tuple(owners), columns
        rows, others = torch.triu_indices(size, size, offset=1)
        self.register_buffer("pairs", torch.stack([rows, others]), persistent=False)
        self.pair_weights = nn.Parameter(torch.ones(len(owners), len(rows)))
        width = columns.widths[0] + columns.num_dense
        self.mlp = BatchedMlp(len(owners), width, widths, dropout=dropout, owners=owners)
        self.width_out = self.mlp.width_out

    pairs: Tensor

    def owned_dims(self) -> dict[str, dict[int, Labels]]:
        return {"pair_weights": {0: self.owners}}

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, I), or (B, I) that all K read, -> (K, B, H)."""
        num, size = len(self.owners), len(self.columns.widths)
        fields, dense = self.columns.fields(x.expand(num, -1, -1))
        weights = self.pair_weights.new_zeros(num, size, size)
        weights[:, self.pairs[0], self.pairs[1]] = self.pair_weights
        # Row i: e_i times the weighted sum of the features after it.
        interactions = (fields * torch.matmul(weights.unsqueeze(1), fields)).sum(dim=2)
        return self.mlp(torch.cat([interactions, dense], dim=-1))


def experts(
    kind: ExpertKind,
    owners: Sequence[str],
    columns: Columns,
    widths: Sequence[int],
    dropout: float = 0.0,
) -> BatchedMlp | FieldWeightedExperts:
    """One expert per owner on the model's features: (K, B, I) or (B, I) -> (K, B, H).

    Args:
        owners: whose each of the K experts is, all different.
        widths: an expert's layers; the last one is H.
        dropout: probability of dropping a hidden activation.

    Raises:
        ValueError: as ``FieldWeightedExperts`` does.

    >>> experts("mlp", ["click", "like"], Columns((4, 4, 8), 2), (16, 8)).width_out
    8
    """
    if kind == "nfwfm":
        return FieldWeightedExperts(owners, columns, widths, dropout)
    return BatchedMlp(len(owners), columns.width, widths, dropout=dropout, owners=owners)
