"""From a stream per task to its logit."""

from torch import Tensor, nn

from stem_torchrec.config import ModelConfig
from stem_torchrec.nn.mlp import BatchedMlp


class Towers(nn.Module):
    """One perceptron per task to its logit."""

    def __init__(self, num_tasks: int, width_in: int, config: ModelConfig) -> None:
        super().__init__()
        self.mlp = BatchedMlp(num_tasks, width_in, config.tower_widths, 1, config.dropout)

    def forward(self, streams: Tensor) -> Tensor:
        """(T, B, H) -> logits (B, T)."""
        return self.mlp(streams).squeeze(-1).t()
