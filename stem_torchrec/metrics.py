"""Metrics of the training stream, per task.

B rows of the local batch, T tasks.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecMetric

from stem_torchrec.recommender import StepOutput


class TrainMetrics:
    """Loss, NE and calibration of the training stream, TorchRec's metrics over all ranks.

    Args:
        batch_size: rows per rank and step.
        window: samples of all ranks in the windowed NE.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        batch_size: int,
        window: int,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._tasks = tuple(tasks)
        self._world_size = world_size
        infos = [
            RecTaskInfo(name=task, label_name=task, prediction_name=task, weight_name=task)
            for task in tasks
        ]
        self._metrics: list[RecMetric] = [
            kind(
                world_size=world_size,
                my_rank=rank,
                batch_size=batch_size,
                tasks=infos,
                compute_mode=RecComputeMode.FUSED_TASKS_COMPUTATION,
                window_size=max(window, batch_size * world_size),
                **options,
            ).to(device)
            for kind, options in (
                (NEMetric, {"allow_missing_label_with_zero_weight": True}),
                (CalibrationMetric, {}),
            )
        ]
        self._loss_sum = torch.zeros(len(tasks), device=device)
        self._loss_steps = 0

    def update(self, output: StepOutput) -> None:
        predictions = self._by_task(output.logits.sigmoid())
        labels, weights = (self._by_task(part) for part in output.target)
        for metric in self._metrics:
            metric.update(predictions=predictions, labels=labels, weights=weights)
        self._loss_sum += output.losses
        self._loss_steps += 1

    def compute(self) -> dict[str, dict[str, float | None]]:
        """Figures by name and task, on rank 0; elsewhere the loss alone. Collective.

        The loss is the mean since the last call.

        ``loss`` in nats; ``ne`` since the start, ``ne_window`` over the last window;
        ``calibration`` is predicted over observed positives in the window. A figure that the
        labels do not define is None.
        """
        losses = self._loss_sum / (self._loss_steps or math.nan)
        if self._world_size > 1:
            torch.distributed.all_reduce(losses)
        result: dict[str, dict[str, float | None]] = {
            "loss": self._named((losses / self._world_size).tolist())
        }
        self._loss_sum.zero_()
        self._loss_steps = 0
        reports: dict[str, float] = {}
        for metric in self._metrics:
            reports |= {key: float(value) for key, value in metric.compute().items()}
        if not reports:
            return result
        for name, key in (
            ("ne", "ne-{}|lifetime_ne"),
            ("ne_window", "ne-{}|window_ne"),
            ("calibration", "calibration-{}|window_calibration"),
        ):
            result[name] = self._named([reports[key.format(task)] for task in self._tasks])
        return result

    def _by_task(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._tasks, values.t().unbind(0), strict=True))

    def _named(self, values: Sequence[float]) -> dict[str, float | None]:
        """By task; None where the labels do not define the figure."""
        return {
            task: value if math.isfinite(value) else None
            for task, value in zip(self._tasks, values, strict=True)
        }
