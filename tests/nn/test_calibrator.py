"""The penalty's value is the definition's, and each task's loss has its own logit's gradient."""

import torch

from stem_torchrec.nn.calibrator import Calibrator

ORDER = [1, 0, 2]
WEIGHT = 0.6


def logits():
    torch.manual_seed(0)
    return torch.randn(50, 3, dtype=torch.float64, requires_grad=True)


def by_definition(values):
    p = values.sigmoid()
    return WEIGHT * ((p[:, 0] - p[:, 1]).relu() + (p[:, 2] - p[:, 0]).relu())


def test_value_and_total_gradient():
    values = logits()
    penalties = Calibrator(ORDER, WEIGHT)(values)
    expected = by_definition(values)
    torch.testing.assert_close(penalties.sum(dim=1), expected)
    assert (penalties[:, 1] == 0).all()
    assert (penalties >= 0).all()
    found, wanted = (
        torch.autograd.grad(total.sum(), values, retain_graph=True)[0]
        for total in (penalties, expected)
    )
    torch.testing.assert_close(found, wanted)


def test_a_tasks_penalty_moves_its_own_logit_alone():
    values = logits()
    penalties = Calibrator(ORDER, WEIGHT)(values)
    for task in range(3):
        gradient = torch.autograd.grad(penalties[:, task].sum(), values, retain_graph=True)[0]
        assert (gradient != 0).any(dim=0).tolist() == [task == other for other in range(3)]
