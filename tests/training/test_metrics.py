"""Metrics of the training stream against their definitions."""

import numpy as np
import pytest
import torch

from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.nn.losses import labelled, task_losses
from stem_torchrec.training.metrics import TrainMetrics

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
        total = target.weights.sum(0)
        result.append(DenseOutput(task_losses(logits, target, total), logits, target, total))
    return result


def metrics_with(window=BATCH * 1000):
    return TrainMetrics(
        TASKS, batch_size=BATCH, window=window, rank=0, world_size=1, device=torch.device("cpu")
    )


def expected_loss(steps):
    """Mean loss over the labelled samples of some steps, by their weight, per task."""
    totals = torch.stack([step.total_weights for step in steps])
    losses = torch.stack([step.losses for step in steps])
    return ((losses * totals).sum(0) / totals.sum(0)).tolist()


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
        assert found["loss"][task] == pytest.approx(expected_loss(steps)[index], rel=1e-6)


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
    found = metrics.compute()["loss"]
    assert [found[task] for task in TASKS] == pytest.approx(expected_loss(steps[1:]), rel=1e-6)


def without_labels(step, task):
    """The step with null labels of one task."""
    kept = torch.ones(2)
    kept[TASKS.index(task)] = 0
    target = step.target._replace(weights=step.target.weights * kept)
    return DenseOutput(step.losses * kept, step.logits, target, step.total_weights * kept)


def with_labels(step, value):
    """The step with the same label in all of its samples."""
    target = step.target._replace(labels=torch.full_like(step.target.labels, value))
    return step._replace(target=target, losses=task_losses(step.logits, target, step.total_weights))


def test_steps_without_a_label_do_not_dilute_the_loss():
    steps = outputs(10)
    metrics = metrics_with()
    metrics.update(steps[0])
    for step in steps[1:]:
        metrics.update(without_labels(step, "like"))
    found = metrics.compute()["loss"]
    assert found["like"] == pytest.approx(steps[0].losses[1].item(), rel=1e-6)
    assert found["click"] == pytest.approx(expected_loss(steps)[0], rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_what_one_kind_of_label_does_not_define_is_none(value):
    metrics = metrics_with()
    for step in outputs(3):
        metrics.update(with_labels(step, value))
    found = metrics.compute()
    for task in TASKS:
        assert found["loss"][task] > 0
        assert found["ne"][task] is found["ne_window"][task] is None
        assert (found["calibration"][task] is None) == (value == 0)


def test_a_window_is_judged_by_its_own_labels():
    """Not by those that have left it; weights of any size leave rounding behind."""
    steps = outputs(8)
    metrics = metrics_with(window=2 * BATCH)
    for step in steps[:4]:
        metrics.update(step)
    for step in steps[4:6]:
        metrics.update(with_labels(step, 0.0))
    found = metrics.compute()
    for task in TASKS:
        assert found["ne"][task] > 0
        assert found["ne_window"][task] is found["calibration"][task] is None
    for step in steps[6:]:
        metrics.update(without_labels(step, "like"))
    found = metrics.compute()
    assert found["ne"]["like"] > 0
    assert (
        found["loss"]["like"] is found["ne_window"]["like"] is found["calibration"]["like"] is None
    )
    assert found["ne_window"]["click"] > 0


def test_null_labels_alone_leave_other_tasks_as_they_are():
    step = outputs(1)[0]
    metrics = metrics_with()
    metrics.update(without_labels(step, "like"))
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
    """Sums are those of both ranks, the window holds what comes after."""
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
    for index, task in enumerate(TASKS):
        assert found["ne"][task] == pytest.approx(everything[task][0], rel=1e-6)
        assert found["ne_window"][task] == pytest.approx(new[task][0], rel=1e-6)
        loss = expected_loss([*steps[:4], after])[index]
        assert found["loss"][task] == pytest.approx(loss, rel=1e-6)


def test_a_record_off_the_schedule_leaves_the_mean_loss():
    one, two = outputs(2)
    metrics = metrics_with()
    metrics.update(one)
    metrics.compute(start_anew=False)
    metrics.update(two)
    mean = expected_loss([one, two])[0]
    assert metrics.compute()["loss"]["click"] == pytest.approx(mean, rel=1e-6)


def test_a_state_of_losses_by_step_still_loads():
    """Checkpoints once held losses added up over steps, weights twice, and the steps' number."""
    steps = outputs(3, weighted=False, null_share=0.0)
    rank = metrics_with()
    for step in steps[:2]:
        rank.update(step)
    losses = sum(step.losses for step in steps[:2])
    weights = sum(step.total_weights for step in steps[:2])
    old = rank.state_dict() | {"sums": torch.stack([losses, weights, weights]), "loss_steps": 2}
    for load in ("load_state_dict", "merge"):
        resumed = metrics_with()
        getattr(resumed, load)(old if load == "load_state_dict" else [old])
        resumed.update(steps[2])
        found = resumed.compute()["loss"]
        assert [found[task] for task in TASKS] == pytest.approx(expected_loss(steps), rel=1e-6)
