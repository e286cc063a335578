"""Norms and cosines from a Gram matrix."""

import torch

from stem_torchrec.balancing.cosine import cosines, gradient_norms


def test_golden():
    gram = torch.tensor([[4.0, -3.0, 0.0], [-3.0, 9.0, 0.0], [0.0, 0.0, 0.0]])
    assert gradient_norms(gram).tolist() == [2.0, 3.0, 0.0]
    expected = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(cosines(gram), expected)


def test_rounding_gives_no_cosine_beyond_one():
    over = 1.0 + 2.0**-23
    gram = torch.tensor([[1.0, over, -over], [over, 1.0, -over], [-over, -over, 1.0]]).double()
    assert cosines(gram).abs().max() == 1.0
