"""Metrics of the training stream against their definitions."""

import numpy as np
import pytest
import torch
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.ne import NEMetric

from stem_torchrec.distributed.dense_step import DenseOutput
from stem_torchrec.nn.losses import Labelled, labelled, task_losses
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


def torchrec_metrics(window):
    """TorchRec's own NE and calibration, which earlier versions recorded and saved."""
    tasks = [
        RecTaskInfo(name=task, label_name=task, prediction_name=task, weight_name=task)
        for task in TASKS
    ]
    return [
        kind(
            world_size=1,
            my_rank=0,
            batch_size=BATCH,
            tasks=tasks,
            compute_mode=RecComputeMode.FUSED_TASKS_COMPUTATION,
            window_size=window,
        )
        for kind in (NEMetric, CalibrationMetric)
    ]


def feed(metrics, steps):
    for step in steps:
        parts = (step.logits.sigmoid(), step.target.labels, step.target.weights)
        by_task = [dict(zip(TASKS, part.t().unbind(0), strict=True)) for part in parts]
        for metric in metrics:
            metric.update(**dict(zip(("predictions", "labels", "weights"), by_task, strict=True)))


def figures_of(metrics):
    found = {}
    for metric in metrics:
        found |= {key: float(value) for key, value in metric.compute().items()}
    return found


@pytest.mark.parametrize(("num_rows", "short"), [(1000, ()), (3 * BATCH, ()), (50, (2, 4, 5))])
def test_figures_are_torchrecs(num_rows, short):
    """Windows that steps of several sizes enter and leave, too."""
    steps = [cut(step, 5) if i in short else step for i, step in enumerate(outputs(9))]
    ours, theirs = metrics_with(window=num_rows), torchrec_metrics(num_rows)
    for number, step in enumerate(steps):
        ours.update(step)
        feed(theirs, [step])
        if number % 4 < 3:
            continue
        found, expected = ours.compute(), figures_of(theirs)
        for task in TASKS:
            for name, key in (
                ("ne", "ne-{}|lifetime_ne"),
                ("ne_window", "ne-{}|window_ne"),
                ("calibration", "calibration-{}|window_calibration"),
            ):
                assert found[name][task] == pytest.approx(expected[key.format(task)], rel=1e-6)


def cut(step, num_rows):
    """The first rows of a step, as at an epoch's end."""
    target = Labelled(*(part[:num_rows] for part in step.target))
    logits, total = step.logits[:num_rows], target.weights.sum(0)
    return DenseOutput(task_losses(logits, target, total), logits, target, total)


def torchrec_state(steps, window, loss_sums):
    """What a checkpoint held of TorchRec's metrics."""
    metrics = torchrec_metrics(window)
    feed(metrics, steps)
    parts = [part for metric in metrics for part in metric._metrics_computations]
    saved = [
        {
            "states": {name: getattr(part, name) for name in part._defaults},
            "windows": {
                name: (torch.stack(list(window.buffers)), list(window._used_sizes))
                for name, window in part._batch_window_buffers.items()
                if window.buffers
            },
        }
        for part in parts
    ]
    return {"metrics": saved} | loss_sums


@pytest.mark.parametrize("load", ["load_state_dict", "merge"])
@pytest.mark.parametrize("by_step", [False, True])
@pytest.mark.parametrize("num_before", [0, 3])
def test_a_state_of_torchrecs_metrics_still_loads(load, by_step, num_before):
    """The loss once was added up over steps, weights twice, with the steps' number."""
    steps = outputs(6, weighted=False, null_share=0.0)
    before, after = steps[:num_before], steps[num_before:]
    weights = torch.full((2,), float(BATCH)) * num_before
    losses = torch.zeros(2) + sum(step.losses for step in before)
    sums = {"sums": torch.stack([losses * BATCH, weights])}
    if by_step:
        sums = {"sums": torch.stack([losses, weights, weights]), "loss_steps": num_before}
    old = torchrec_state(before, 4 * BATCH, sums)
    resumed, whole = metrics_with(window=4 * BATCH), metrics_with(window=4 * BATCH)
    getattr(resumed, load)(old if load == "load_state_dict" else [old])
    for step in steps:
        whole.update(step)
    for step in after:
        resumed.update(step)
    found, expected = resumed.compute(), whole.compute()
    if load == "merge" and num_before:
        del found["ne_window"], found["calibration"]
    for name, figures in found.items():
        assert figures == pytest.approx(expected[name], rel=1e-6), name
