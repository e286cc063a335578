"""The eval record against plain definitions."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from stem_torchrec.nn.losses import labelled
from stem_torchrec.training.evaluation import Joined, Predictions, evaluation

TASKS = ("click", "like")
NAN = float("nan")


def batch(seed, rows, *, weighted):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 2, generator=generator)
    labels = torch.randint(0, 2, (rows, 2), generator=generator).float()
    labels[torch.rand(rows, 2, generator=generator) < 0.3] = NAN
    weights = torch.rand(rows, generator=generator) + 0.1 if weighted else None
    groups = torch.randint(0, 4, (rows,), generator=generator)
    return logits, labels, weights, groups


def joined_of(batches, *, has_groups=True):
    predictions = Predictions(2, has_groups=has_groups)
    for logits, labels, weights, groups in batches:
        predictions.add(logits, labelled(labels, weights), groups)
    return predictions.joined(lambda rows: rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_figure(weighted):
    batches = [batch(seed, rows, weighted=weighted) for seed, rows in ((0, 50), (1, 1), (2, 30))]
    record = evaluation(TASKS, joined_of(batches))
    logits, labels, groups = (
        torch.cat([b[i] for b in batches]).double().numpy() for i in (0, 1, 3)
    )
    weights = np.ones(81)
    if weighted:
        weights = torch.cat([b[2] for b in batches]).double().numpy()
    for index, task in enumerate(TASKS):
        seen = ~np.isnan(labels[:, index])
        y, w = labels[seen, index], weights[seen]
        p = 1 / (1 + np.exp(-logits[seen, index]))
        mean = np.average(y, weights=w)
        loss = log_loss(y, p, sample_weight=w)
        entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
        assert record["labels"][task] == seen.sum()
        assert record["logloss"][task] == pytest.approx(loss, abs=1e-6)
        assert record["ne"][task] == pytest.approx(loss / entropy, abs=1e-6)
        expected_auc = roc_auc_score(y, p, sample_weight=w)
        assert record["auc"][task] == pytest.approx(expected_auc, abs=1e-6)
        assert record["calibration"][task] == pytest.approx(np.average(p, weights=w) / mean)
        areas = [
            (roc_auc_score(y[own], p[own], sample_weight=w[own]), w[own].sum())
            for own in (groups[seen] == group for group in range(4))
            if len(set(y[own])) == 2
        ]
        gauc = sum(a * m for a, m in areas) / sum(m for _, m in areas)
        assert record["gauc"][task] == pytest.approx(gauc, abs=1e-6)
    assert record["auc_mean"] == pytest.approx(np.mean(list(record["auc"].values())))


def test_the_mean_label_as_prediction_has_entropy_one():
    labels = np.array([[1.0], [0.0], [0.0], [1.0], [0.0]])
    logits = np.full((5, 1), np.log(0.4 / 0.6))
    record = evaluation(("click",), Joined(logits, labels, np.ones((5, 1)), None))
    assert record["ne"]["click"] == pytest.approx(1)
    assert record["calibration"]["click"] == pytest.approx(1)
    assert record["auc"]["click"] == 0.5


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_labels_of_one_kind_leave_figures_out(label):
    labels = np.array([[label, 1.0], [label, 0.0]])
    joined = Joined(np.zeros((2, 2)), labels, np.ones((2, 2)), np.array([1, 1]))
    record = evaluation(TASKS, joined)
    assert record["ne"]["click"] is record["auc"]["click"] is record["gauc"]["click"] is None
    assert record["logloss"]["click"] == pytest.approx(np.log(2))
    assert record["calibration"]["click"] == (pytest.approx(0.5) if label else None)
    # The mean is over the tasks that have one.
    assert record["auc_mean"] == record["auc"]["like"] == 0.5


def test_a_task_without_labels_has_no_figures():
    logits, labels, weights, groups = batch(0, 20, weighted=False)
    labels[:] = NAN
    record = evaluation(TASKS, joined_of([(logits, labels, weights, groups)]))
    for name in ("logloss", "ne", "auc", "gauc", "calibration"):
        assert record[name] == dict.fromkeys(TASKS)
    assert record["labels"] == dict.fromkeys(TASKS, 0)
    assert record["auc_mean"] is None


def test_extreme_logits_stay_finite():
    logits = np.array([[800.0], [-800.0], [0.0]])
    joined = Joined(logits, np.array([[0.0], [1.0], [1.0]]), np.ones((3, 1)), None)
    record = evaluation(("click",), joined)
    assert record["logloss"]["click"] == pytest.approx((1600 + np.log(2)) / 3)
    assert record["gauc"]["click"] is None


def test_no_batch_at_all():
    joined = joined_of([])
    assert joined.logits.shape == (0, 2)
    assert evaluation(TASKS, joined)["auc_mean"] is None


def test_other_ranks_get_nothing():
    assert Predictions(2, has_groups=True).joined(lambda rows: None) is None


def test_padding_does_not_count():
    one = batch(0, 20, weighted=True)
    padding = (torch.zeros(3, 2), torch.full((3, 2), NAN), torch.zeros(3), torch.full((3,), -1))
    assert evaluation(TASKS, joined_of([one, padding])) == evaluation(TASKS, joined_of([one]))
