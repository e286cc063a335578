"""From a stream per task to its logit.

B rows, T tasks, streams of width H.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from stem_torchrec.nn.mlp import BatchedMlp


class Towers(nn.Module):
    """One perceptron per task to its logit.

    Args:
        tasks: their names.
        width_in: H.
        widths: of the hidden layers.
        dropout: probability of dropping a hidden activation.

    >>> towers = Towers(["click", "like"], 8, (4,))
    >>> towers(torch.randn(2, 5, 8)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, tasks: Sequence[str], width_in: int, widths: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.mlp = BatchedMlp(len(tasks), width_in, widths, 1, dropout, owners=tasks)

    def forward(self, streams: Tensor) -> Tensor:
        """(T, B, H) -> logits (B, T)."""
        return self.mlp(streams).squeeze(-1).t()
