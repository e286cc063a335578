"""One step's input on one rank.

B rows of the local batch, F id and bag features, T tasks, N dense features.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass(frozen=True)
class Batch(Pipelineable):
    """Rows of one step, on the host or on a device.

    Every rank's batch of a step has as many rows; where a rank has fewer samples, the last rows
    are padding: empty bags, null labels. They take part in every collective and change nothing.

    Attributes:
        sparse: ids of the F features in schema order, int64 values, int32 lengths.
        dense: (B, N) float32; N may be 0.
        labels: (B, T) float32; NaN where the task was not observed.
        weights: (B,) float32 sample weights, or None where the data has none.
        groups: (B,) int64 groups of GAUC, or None where the data has none.
        num_samples: real rows among the B, the first ones.
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    labels: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None
    num_samples: int = 0

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        if self.labels.device == device:
            return self
        return self._map(lambda part: part.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        self._map(lambda part: part.record_stream(stream) or part)

    def _map(self, function) -> "Batch":  # type: ignore[no-untyped-def]
        parts = {
            field.name: function(part)
            for field in fields(self)
            if isinstance(part := getattr(self, field.name), Tensor | KeyedJaggedTensor)
        }
        return replace(self, **parts)
