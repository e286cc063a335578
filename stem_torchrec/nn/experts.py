"""K experts of one shape, by type, as batched matrix products.

B rows, F features of dimension D, N dense features, experts of width H.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.errors import UserError
from stem_torchrec.nn.inputs import Inputs
from stem_torchrec.nn.mlp import BatchedMlp


class FieldWeightedExperts(nn.Module):
    """K neural factorization machines with field-weighted interactions (NFwFM).

    Expert k is a perceptron on sum_{i<j} r_kij e_i * e_j (He and Chua, SIGIR 2017, equation 3) with
    a weight r per pair of features (Pan et al., WWW 2018, equation 6), followed by the dense
    features. The weights start at 1: the plain bi-interaction.

    Raises:
        UserError: fewer than two features.
    """

    def __init__(self, num: int, inputs: Inputs, config: ModelConfig) -> None:
        super().__init__()
        if inputs.num_fields < 2:
            raise UserError("model.expert: 'nfwfm' weights pairs of features; the data has one")
        self.num, self.inputs = num, inputs
        rows, columns = torch.triu_indices(inputs.num_fields, inputs.num_fields, offset=1)
        self.register_buffer("pairs", torch.stack([rows, columns]), persistent=False)
        self.pair_weights = nn.Parameter(torch.ones(num, len(rows)))
        width = inputs.dim + inputs.num_dense
        self.mlp = BatchedMlp(num, width, config.expert_widths, dropout=config.dropout)
        self.width_out = self.mlp.width_out

    pairs: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, F * D + N), or (B, F * D + N) that all K read, -> (K, B, H)."""
        fields, dense = self.inputs.fields(x.expand(self.num, -1, -1))
        size = self.inputs.num_fields
        weights = self.pair_weights.new_zeros(self.num, size, size)
        weights[:, self.pairs[0], self.pairs[1]] = self.pair_weights
        # Row i: e_i times the weighted sum of the features after it.
        interactions = (fields * torch.matmul(weights.unsqueeze(1), fields)).sum(dim=2)
        return self.mlp(torch.cat([interactions, dense], dim=-1))


def _mlp(num: int, inputs: Inputs, config: ModelConfig) -> BatchedMlp:
    return BatchedMlp(num, inputs.width, config.expert_widths, dropout=config.dropout)


EXPERTS: dict[str, Callable[[int, Inputs, ModelConfig], BatchedMlp | FieldWeightedExperts]] = {
    "mlp": _mlp,
    "nfwfm": FieldWeightedExperts,
}


def experts(num: int, inputs: Inputs, config: ModelConfig) -> BatchedMlp | FieldWeightedExperts:
    """``num`` experts of the configured type on the model's features."""
    return EXPERTS[config.expert](num, inputs, config)
