"""What a dense step has made is looked at as a whole: one bad number anywhere is seen."""

import pytest
import torch

from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.nn.losses import Labelled

MOST = torch.finfo(torch.float32).max


def output(size: float) -> DenseOutput:
    """Numbers of one size, and a part without any."""
    return DenseOutput(
        losses=torch.tensor([size, 1.0]),
        logits=torch.zeros(3, 2),
        target=Labelled(torch.zeros(3, 2), torch.ones(3, 2)),
        total_weights=torch.ones(2),
        pooled={"shared": torch.full((3, 50), -size), "click": torch.full((3, 50), size)},
        weights=[torch.full((7, 33), size), torch.empty(0)],
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["losses", "pooled", "weights"])
@pytest.mark.parametrize("size", [1.0, MOST], ids=["ordinary", "sums overflow"])
def test_one_number_that_is_not_finite(size: float, part: str, bad: float) -> None:
    found = output(size)
    assert bool(found.is_finite())
    numbers = {"losses": found.losses, "pooled": found.pooled["click"], "weights": found.weights[0]}
    numbers[part].view(-1)[-1] = bad
    assert not bool(found.is_finite())
