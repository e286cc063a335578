"""Metrics of the training stream against their definitions."""

import numpy as np
import pytest
import torch

from stem_torchrec.metrics import TrainMetrics
from stem_torchrec.nn.losses import labelled, task_losses
from stem_torchrec.recommender import StepOutput

TASKS = ("click", "like")
BATCH = 16


def outputs(num_steps, *, weighted=True, null_share=0.3):
    generator = torch.Generator().manual_seed(0)
    result = []
    for _ in range(num_steps):
        logits = torch.randn(BATCH, 2, generator=generator)
        labels = torch.randint(0, 2, (BATCH, 2), generator=generator).float()
        labels[torch.rand(BATCH, 2, generator=generator) < null_share] = float("nan")
        weights = torch.rand(BATCH, generator=generator) + 0.1 if weighted else None
        target = labelled(labels, weights)
        losses = task_losses(logits, target, target.weights.sum(0))
        result.append(StepOutput(losses, logits, target))
    return result


def metrics_with(window=BATCH * 1000):
    return TrainMetrics(
        TASKS, batch_size=BATCH, window=window, rank=0, world_size=1, device=torch.device("cpu")
    )


def expected_figures(steps):
    """NE and calibration per task, from their definitions."""
    figures = {}
    for index, task in enumerate(TASKS):
        y, w, p = (
            torch.cat([part[:, index] for part in parts]).double().numpy()
            for parts in (
                [step.target.labels for step in steps],
                [step.target.weights for step in steps],
                [step.logits.sigmoid() for step in steps],
            )
        )
        mean = np.average(y, weights=w)
        loss = np.average(-y * np.log(p) - (1 - y) * np.log(1 - p), weights=w)
        entropy = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
        figures[task] = loss / entropy, np.average(p, weights=w) / mean
    return figures


@pytest.mark.parametrize("weighted", [False, True])
def test_figures(weighted):
    steps = outputs(5, weighted=weighted)
    metrics = metrics_with()
    for step in steps:
        metrics.update(step)
    found = metrics.compute()
    for index, (task, (ne, calibration)) in enumerate(expected_figures(steps).items()):
        assert found["ne"][task] == pytest.approx(ne, rel=1e-5)
        assert found["ne_window"][task] == pytest.approx(ne, rel=1e-5)
        assert found["calibration"][task] == pytest.approx(calibration, rel=1e-5)
        mean_loss = torch.stack([step.losses for step in steps]).mean(0)[index].item()
        assert found["loss"][task] == pytest.approx(mean_loss, rel=1e-6)


def test_the_window_forgets_and_the_lifetime_does_not():
    steps = outputs(6)
    metrics = metrics_with(window=2 * BATCH)
    for step in steps:
        metrics.update(step)
    found = metrics.compute()
    lifetime, window = expected_figures(steps), expected_figures(steps[-2:])
    for task in TASKS:
        assert found["ne"][task] == pytest.approx(lifetime[task][0], rel=1e-5)
        assert found["ne_window"][task] == pytest.approx(window[task][0], rel=1e-5)
        assert found["calibration"][task] == pytest.approx(window[task][1], rel=1e-5)


def test_the_loss_is_the_mean_since_the_last_report():
    steps = outputs(3)
    metrics = metrics_with()
    metrics.update(steps[0])
    metrics.compute()
    for step in steps[1:]:
        metrics.update(step)
    expected = (steps[1].losses + steps[2].losses) / 2
    found = metrics.compute()["loss"]
    assert [found[task] for task in TASKS] == pytest.approx(expected.tolist(), rel=1e-6)


def test_null_labels_alone_leave_other_tasks_as_they_are():
    step = outputs(1)[0]
    target = step.target._replace(weights=step.target.weights * torch.tensor([1.0, 0.0]))
    metrics = metrics_with()
    metrics.update(step._replace(target=target))
    found = metrics.compute()
    assert found["ne"]["click"] == pytest.approx(expected_figures([step])["click"][0], rel=1e-5)
    assert found["ne"]["like"] is found["loss"]["like"] is None


def test_a_resumed_stream_is_the_stream():
    steps = outputs(6)
    whole, first, second = (metrics_with(window=3 * BATCH) for _ in range(3))
    for step in steps:
        whole.update(step)
    for step in steps[:4]:
        first.update(step)
    second.load_state_dict(first.state_dict())
    for step in steps[4:]:
        second.update(step)
    assert second.compute() == whole.compute()


def test_ranks_are_merged():
    """Sums are those of both ranks, the loss is their mean, the window holds what comes after."""
    steps, after = outputs(6)[:5], outputs(6)[5]
    states = []
    for part in (steps[:2], steps[2:4]):
        rank = metrics_with()
        for step in part:
            rank.update(step)
        states.append(rank.state_dict())
    merged = metrics_with()
    merged.merge(states)
    merged.update(after)
    found = merged.compute()
    everything = expected_figures([*steps[:4], after])
    new = expected_figures([after])
    losses = (sum(step.losses for step in steps[:4]) / 2 + after.losses) / 3
    for index, task in enumerate(TASKS):
        assert found["ne"][task] == pytest.approx(everything[task][0], rel=1e-6)
        assert found["ne_window"][task] == pytest.approx(new[task][0], rel=1e-6)
        assert found["loss"][task] == pytest.approx(losses[index].item(), rel=1e-5)


def test_a_record_off_the_schedule_leaves_the_mean_loss():
    one, two = outputs(2)
    metrics = metrics_with()
    metrics.update(one)
    metrics.compute(start_anew=False)
    metrics.update(two)
    mean = (one.losses + two.losses) / 2
    assert metrics.compute()["loss"]["click"] == pytest.approx(mean[0].item(), rel=1e-6)
