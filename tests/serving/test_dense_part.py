"""The dense part of every model, traced and read again, gives the logits that the model gives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stem_torchrec.errors import UserError
from stem_torchrec.nn import MODELS
from stem_torchrec.serving.dense_part import DensePart, save_dense_part
from tests.nn.models.test_every_model import N, inputs_of, model_with


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models(name: str, tmp_path: Path) -> None:
    model = model_with(name).eval()
    pooled, dense = inputs_of(model)
    widths = {owner: part.shape[1] for owner, part in pooled.items()}
    save_dense_part(model, widths, N, tmp_path / "dense.pt2")
    part = DensePart(tmp_path / "dense.pt2")
    for rows in (9, 2, 1):
        cut = {owner: values[:rows].detach() for owner, values in pooled.items()}
        torch.testing.assert_close(part.logits(cut, dense[:rows]), model(cut, dense[:rows]))


def test_what_torch_cannot_trace_is_named(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pooled: dict[str, torch.Tensor], dense: torch.Tensor) -> torch.Tensor:
            return dense if float(pooled["shared"].sum()) > 0 else pooled["shared"]

    with pytest.raises(UserError, match=r"model.name: torch.export cannot trace this model"):
        save_dense_part(Odd(), {"shared": 4}, N, tmp_path / "dense.pt2")
    assert not list(tmp_path.iterdir())
