"""Metrics of a step's balancing."""

import pytest
import torch

from stem_torchrec.balancing.report import balance_metrics
from stem_torchrec.balancing.rule import balance
from stem_torchrec.balancing.rules.equal import EqualRule
from tests.balancing.grams import apply, gradients, gram_of


def test_golden():
    gram = torch.tensor([[4.0, -3.0, 0.0], [-3.0, 9.0, 9.0], [0.0, 9.0, 36.0]])
    metrics = balance_metrics(gram, apply(EqualRule(), gram))
    assert metrics["weight"].tolist() == [1.0, 1.0, 1.0]
    assert metrics["gradient_norm"].tolist() == [2.0, 3.0, 6.0]
    torch.testing.assert_close(metrics["cosine"], torch.tensor([-0.25, 0.0, 0.25]))
    assert metrics["conflict_share"].item() == pytest.approx(1 / 3)
    assert metrics["fallback"].item() == 0
    assert all(value.dtype == torch.float32 for value in metrics.values())


def test_task_left_out_counts_in_no_pair():
    gram = gram_of(gradients("torn", 4, 30))
    labelled = torch.tensor([True, True, False, True])
    absent = balance(EqualRule(), gram, torch.ones(4), {}, 0, labelled=labelled)
    metrics = balance_metrics(gram, absent)
    rest = gram[labelled][:, labelled]
    expected = balance_metrics(rest, apply(EqualRule(), rest))
    torch.testing.assert_close(metrics["cosine"][labelled], expected["cosine"])
    torch.testing.assert_close(metrics["conflict_share"], expected["conflict_share"])
    assert metrics["cosine"].isnan().tolist() == [False, False, True, False]
    assert metrics["weight"][2] == 0


def test_bad_gradient_shows_in_its_norm_alone():
    gram = torch.eye(3)
    gram[1, :] = gram[:, 1] = float("nan")
    metrics = balance_metrics(gram, apply(EqualRule(), gram))
    assert metrics["gradient_norm"].isnan().tolist() == [False, True, False]
    assert metrics["cosine"].isnan().tolist() == [False, True, False]
    for name in ("weight", "conflict_share", "fallback"):
        assert metrics[name].isfinite().all()


def test_one_task_and_no_task():
    for gram in (torch.ones(1, 1), torch.zeros(2, 2)):
        metrics = balance_metrics(gram, apply(EqualRule(), gram))
        assert metrics["cosine"].isnan().all()
        assert metrics["conflict_share"].isnan()
    assert metrics["fallback"] == 1
