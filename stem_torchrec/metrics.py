"""Metrics of the training stream, per task.

B rows of the local batch, T tasks.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchrec.metrics.calibration import CalibrationMetric
from torchrec.metrics.metrics_config import RecComputeMode, RecTaskInfo
from torchrec.metrics.ne import NEMetric
from torchrec.metrics.rec_metric import RecMetric, RecMetricComputation

from stem_torchrec.distributed.dense_step import DenseOutput


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
        self._rank = rank
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
        # Per task: losses and labels' weights since the last figures, weights since the start.
        self._sums = torch.zeros(3, len(tasks), device=device)
        self._loss_steps = 0

    def update(self, output: DenseOutput) -> None:
        predictions = self._by_task(output.logits.sigmoid())
        labels, weights = (self._by_task(part) for part in output.target)
        for metric in self._metrics:
            metric.update(predictions=predictions, labels=labels, weights=weights)
        weight = output.target.weights.sum(dim=0)
        self._sums += torch.stack([output.losses, weight, weight])
        self._loss_steps += 1

    def compute(self, *, start_anew: bool = True) -> dict[str, dict[str, float | None]]:
        """Figures by name and task, on rank 0; elsewhere the loss alone. Collective.

        ``loss`` in nats, the mean since the last call with ``start_anew``; ``ne`` since the start,
        ``ne_window`` over the last window; ``calibration`` is predicted over observed positives in
        the window. A figure that the labels do not define is None.
        """
        sums = self._sums / self._world_size
        if self._world_size > 1:
            torch.distributed.all_reduce(sums)
        losses, weights, all_weights = sums
        losses = losses / (self._loss_steps or math.nan)
        result: dict[str, dict[str, float | None]] = {
            "loss": self._named(losses.where(weights > 0, math.nan).tolist())
        }
        if start_anew:
            self._sums[:2].zero_()
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
            # Without any label TorchRec's figures are 0, as if all were well.
            figures = torch.tensor(
                [reports[key.format(t)] for t in self._tasks], dtype=torch.double
            )
            result[name] = self._named(figures.where(all_weights.cpu() > 0, math.nan).tolist())
        return result

    def state_dict(self) -> dict[str, Any]:
        """This rank's sums and windows, on the host."""
        return {
            "sums": self._sums.cpu(),
            "loss_steps": self._loss_steps,
            "metrics": [_state_of(part) for part in self._computations()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the rank that ``state_dict`` was taken on, with as many ranks."""
        self._sums.copy_(state["sums"])
        self._loss_steps = state["loss_steps"]
        for part, saved in zip(self._computations(), state["metrics"], strict=True):
            _load_state(part, saved)

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on after another number of ranks: sums are kept, windows start anew."""
        self._sums.copy_(torch.stack([state["sums"] for state in states]).mean(dim=0))
        self._loss_steps = states[0]["loss_steps"]
        if self._rank > 0:
            return  # the first rank has all sums
        for index, part in enumerate(self._computations()):
            for name in part._batch_window_buffers or {}:
                total = name.removeprefix("window_")
                saved = [state["metrics"][index]["states"][total] for state in states]
                getattr(part, total).copy_(torch.stack(saved).sum(dim=0))

    def _computations(self) -> Iterator[RecMetricComputation]:
        for metric in self._metrics:
            yield from metric._metrics_computations

    def _by_task(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._tasks, values.t().unbind(0), strict=True))

    def _named(self, values: Sequence[float]) -> dict[str, float | None]:
        """By task; None where the labels do not define the figure."""
        return {
            task: value if math.isfinite(value) else None
            for task, value in zip(self._tasks, values, strict=True)
        }


def _state_of(part: RecMetricComputation) -> dict[str, Any]:
    windows = part._batch_window_buffers or {}
    return {
        "states": {name: getattr(part, name).cpu() for name in part._defaults},
        "windows": {
            name: (torch.stack(list(window.buffers)).cpu(), list(window._used_sizes))
            for name, window in windows.items()
            if window.buffers
        },
    }


def _load_state(part: RecMetricComputation, saved: Mapping[str, Any]) -> None:
    for name, value in saved["states"].items():
        getattr(part, name).copy_(value)
    for name, (values, sizes) in saved["windows"].items():
        window = (part._batch_window_buffers or {})[name]
        device = getattr(part, name).device
        window._buffers.extend(values.to(device).unbind(0))
        window._used_sizes.extend(sizes)
        window._window_used_size = sum(sizes)
